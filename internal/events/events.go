// Package events carries what happens in the engine to whoever asked, and
// remembers the last of it: a journal of bounded size that one writer fills and
// any number of readers follow at their own pace.
package events

import (
	"time"

	"github.com/moby/moby/api/types/events"
)

// Message is an event as Docker's API gives it.
type Message = events.Message

// Subscription says which events a reader wants.
type Subscription struct {
	Since, Until time.Time          // zero: from now, for ever
	Match        func(Message) bool // nil: all
}
