package server

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"
)

// maxPasswords bounds a password file, in bytes.
const maxPasswords = 1 << 20

// passwords are the users of an htpasswd file (bcrypt). The file is read again
// when it changes.
type passwords struct {
	file string
	salt [32]byte

	mu      sync.Mutex
	read    os.FileInfo // of what was read
	users   map[string][]byte
	checked map[[32]byte]string // hash of a password that was right: its user's hash

	slow chan struct{} // bounds how many passwords are hashed at a time: anybody can ask
}

// maxChecked bounds the memory of passwords that were right.
const maxChecked = 1024

// maxHashing is how many passwords are hashed at a time, some 50 ms of a
// processor each.
const maxHashing = 2

func openPasswords(file string) (*passwords, error) {
	p := &passwords{file: file, slow: make(chan struct{}, maxHashing)}
	rand.Read(p.salt[:])
	if err := p.refresh(); err != nil {
		return nil, err
	}
	return p, nil
}

// refresh reads the file if it has changed. Callers hold mu, or are alone.
func (p *passwords) refresh() error {
	info, err := os.Stat(p.file)
	if err != nil {
		return fmt.Errorf("password file: %w", err)
	}
	if p.users != nil && os.SameFile(info, p.read) && info.ModTime().Equal(p.read.ModTime()) && info.Size() == p.read.Size() {
		return nil
	}
	if info.Size() > maxPasswords {
		return fmt.Errorf("password file %s: %d bytes are more than %d", p.file, info.Size(), maxPasswords)
	}
	b, err := os.ReadFile(p.file)
	if err != nil {
		return fmt.Errorf("password file: %w", err)
	}
	users, err := parsePasswords(b)
	if err != nil {
		return fmt.Errorf("password file %s: %w", p.file, err)
	}
	p.users, p.read, p.checked = users, info, map[[32]byte]string{}
	return nil
}

// parsePasswords reads htpasswd lines: user:hash, of bcrypt only; others are
// refused, not passed over, as their users would wonder.
func parsePasswords(b []byte) (map[string][]byte, error) {
	users := map[string][]byte{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if !ok || user == "" {
			return nil, fmt.Errorf("line %d: want user:hash", n)
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, fmt.Errorf("line %d: the password of %q is not hashed by bcrypt (htpasswd -B, or escale registry passwd)", n, user)
		}
		users[user] = []byte(hash)
	}
	return users, sc.Err()
}

// right tells whether a password is its user's. The slow hash is computed once
// a password: clients send it with every request.
func (p *passwords) right(user, password string) (bool, error) {
	p.mu.Lock()
	if err := p.refresh(); err != nil {
		p.mu.Unlock()
		return false, err // who could come in before must not come in by mistake now
	}
	hash, known := p.users[user]
	sum := sha256.New()
	fmt.Fprintf(sum, "%x %d %s %s", p.salt, len(user), user, password)
	key := [32]byte(sum.Sum(nil))
	was, ok := p.checked[key]
	p.mu.Unlock()
	if known && ok && was == string(hash) {
		return true, nil
	}
	if !known {
		hash = []byte("$2a$10$7EqJtq98hPqEX7fNZaFWoOhi5BqS8b1fVJ0h5wH6aZ0l5PZ0cX0Fa") // as slow as a known one's
	}
	p.slow <- struct{}{}
	defer func() { <-p.slow }()
	if bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil || !known {
		return false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.checked) >= maxChecked {
		clear(p.checked)
	}
	p.checked[key] = string(hash)
	return true, nil
}

// admit lets a request in that has a user's password, and answers any other.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) bool {
	if s.users == nil {
		return true
	}
	user, password, given := r.BasicAuth()
	if given {
		ok, err := s.users.right(user, password)
		if err != nil {
			s.fail(w, r, err)
			return false
		}
		if ok {
			return true
		}
	}
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
	refuse(w, http.StatusUnauthorized, codeUnauthorized, "authentication required")
	return false
}

// HashPassword makes the line of a password file. bcrypt sees the first 72
// bytes only, so longer ones are refused.
func HashPassword(user, password string) (string, error) {
	if user == "" || strings.ContainsAny(user, ":\r\n") {
		return "", invalid("user name %q: want one without colon", user)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), 10)
	if err != nil {
		return "", err
	}
	return user + ":" + string(hash), nil
}
