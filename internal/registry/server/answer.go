package server

import (
	"encoding/json"
	"errors"
	"net/http"

	"golang.org/x/sys/unix"
)

// The specification's codes of errors that we answer ourselves.
const (
	codeUnauthorized = "UNAUTHORIZED"
	codeName         = "NAME_INVALID"
	codeDigest       = "DIGEST_INVALID"
	codeManifest     = "MANIFEST_INVALID"
	codeUnsupported  = "UNSUPPORTED"
	codeUnknown      = "UNKNOWN"
)

// refuse answers with one error in the specification's form.
func refuse(w http.ResponseWriter, status int, code, message string) {
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]one{"errors": {{code, message}}}) // the client is gone: nobody to tell
}

// fail answers an error of the registry's own, which is logged.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil { // else the client has gone, and needs no line
		s.log.Error("request", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	status := http.StatusInternalServerError
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		status = http.StatusInsufficientStorage
	}
	refuse(w, status, codeUnknown, "the registry cannot: "+err.Error())
}

// recorder lets an answer through, and knows its status. One that says that
// something is not here can be kept back, so that others are asked first.
type recorder struct {
	http.ResponseWriter
	status  int
	holdOff bool // keep back the answer 404
	head    http.Header
	on201   func(http.Header)
}

func record(w http.ResponseWriter, holdOff bool) *recorder {
	r := &recorder{ResponseWriter: w, holdOff: holdOff}
	if holdOff {
		r.head = http.Header{}
	}
	return r
}

func (r *recorder) Header() http.Header {
	if r.head != nil {
		return r.head
	}
	return r.ResponseWriter.Header()
}

func (r *recorder) missed() bool { return r.holdOff && r.status == http.StatusNotFound }

func (r *recorder) WriteHeader(status int) {
	if r.status != 0 {
		return
	}
	r.status = status
	if r.missed() {
		return
	}
	if r.head != nil {
		to := r.ResponseWriter.Header()
		for k, v := range r.head {
			to[k] = v
		}
		r.head = nil
	}
	if status == http.StatusCreated && r.on201 != nil {
		r.on201(r.ResponseWriter.Header())
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	if r.missed() {
		return len(b), nil
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// answerJSON answers v. That the client is gone is nobody's concern.
func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
