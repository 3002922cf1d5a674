package engine

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/events"
	"github.com/moby/moby/api/types"
	apievents "github.com/moby/moby/api/types/events"
)

// legacyEvent is an event with the fields older clients read.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func (s systemRoutes) events(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), nil)
	if err != nil {
		return err
	}
	now := time.Now()
	sub := events.Subscription{}
	if sub.Since, err = r.query.time("since", now); err != nil {
		return err
	}
	if sub.Until, err = r.query.time("until", now); err != nil {
		return err
	}
	if !sub.Since.IsZero() && !sub.Until.IsZero() && sub.Since.After(sub.Until) {
		return invalidf("`since` time (%s) cannot be after `until` time (%s)", r.query.get("since"), r.query.get("until"))
	}
	if len(f) > 0 {
		sub.Match = func(m events.Message) bool { return matchEvent(f, m) }
	}
	stream, err := s.cfg.Events.Subscribe(r.Context(), sub)
	if err != nil {
		return err
	}
	defer stream.Close()
	media := eventMedia(r)
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	if err := w.flush(); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		m, err := stream.Next(r.Context())
		var lag *events.LaggedError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &lag):
			s.log.Warn("event reader is too slow", "error", err)
			m = laggedEvent(lag.Lost)
		case err != nil:
			return err
		}
		if media == types.MediaTypeJSONSequence {
			if _, err := w.Write([]byte{0x1e}); err != nil { // the record separator of RFC 7464
				return err
			}
		}
		if err := enc.Encode(eventFor(r.version, m)); err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
}

// actionLagged is told to a reader that was too slow for the journal, in place of the
// events it missed and whatever its filters: nothing is skipped in silence.
const actionLagged apievents.Action = "lagged"

func laggedEvent(lost uint64) events.Message {
	now := time.Now()
	return events.Message{
		Type: apievents.DaemonEventType, Action: actionLagged, Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
		Actor: apievents.Actor{ID: "events", Attributes: map[string]string{"lost": strconv.FormatUint(lost, 10)}},
	}
}

// eventFor adds status, id and from before 1.52.
func eventFor(ver version, m events.Message) any {
	if !ver.before(52) {
		return m
	}
	switch m.Type {
	case apievents.ContainerEventType:
		return legacyEvent{Status: string(m.Action), ID: m.Actor.ID, From: m.Actor.Attributes["image"], Message: m}
	case apievents.ImageEventType:
		return legacyEvent{Status: string(m.Action), ID: m.Actor.ID, Message: m}
	}
	return m
}

// eventMedia chooses the form of the stream from the Accept header, which counts
// since 1.52, and for JSON lines since 1.53.
func eventMedia(r *request) string {
	if r.version.before(52) {
		return types.MediaTypeJSON
	}
	for _, line := range r.Header.Values("Accept") {
		for want := range strings.SplitSeq(line, ",") {
			media, _, err := mime.ParseMediaType(want)
			if err != nil {
				continue
			}
			switch media {
			case types.MediaTypeNDJSON, types.MediaTypeJSONSequence, types.MediaTypeJSON:
				return media
			case types.MediaTypeJSONLines:
				if !r.version.before(53) {
					return media
				}
			}
		}
	}
	return types.MediaTypeJSON
}

// Kinds of objects that events are filtered by, with id or name, whole or their
// beginning.
var eventObjects = []apievents.Type{
	apievents.ContainerEventType, apievents.VolumeEventType, apievents.NetworkEventType, apievents.PluginEventType,
	apievents.DaemonEventType, apievents.NodeEventType, apievents.ServiceEventType, apievents.SecretEventType, apievents.ConfigEventType,
}

// matchEvent reports whether an event is among what a client asked for. Keys
// nobody knows do not filter, as in Docker.
func matchEvent(f filters, m events.Message) bool {
	if !f.exact("type", string(m.Type)) || !f.exact("scope", m.Scope) || !matchAction(f, string(m.Action)) {
		return false
	}
	if f.has("label") && !f.labels("label", m.Actor.Attributes) {
		return false
	}
	for _, kind := range eventObjects {
		key := string(kind)
		if !f.has(key) {
			continue
		}
		if m.Type != kind || !f.prefix(key, m.Actor.ID, m.Actor.Attributes["name"]) {
			return false
		}
	}
	return !f.has("image") || matchImage(f, m)
}

// matchAction knows that "exec_start: sh" is an exec_start.
func matchAction(f filters, action string) bool {
	if f.exact("event", action) {
		return true
	}
	kind, _, detailed := strings.Cut(action, ":")
	return detailed && f.exact("event", kind)
}

// matchImage looks at the image of an event and at the image of a container,
// with and without tag.
func matchImage(f filters, m events.Message) bool {
	name := m.Actor.Attributes["name"]
	if m.Type != apievents.ImageEventType {
		name = m.Actor.Attributes["image"]
	}
	return f.exact("image", m.Actor.ID, name, withoutTag(m.Actor.ID), withoutTag(name))
}

// withoutTag cuts the tag and the digest off a name.
func withoutTag(name string) string {
	if strings.HasPrefix(name, "sha256:") {
		return name
	}
	name, _, _ = strings.Cut(name, "@")
	slash := strings.LastIndexByte(name, '/')
	if colon := strings.LastIndexByte(name, ':'); colon > slash {
		return name[:colon]
	}
	return name
}
