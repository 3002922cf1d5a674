package server

import "sync"

// repoLocks order what changes a repository in several steps: a manifest comes
// with its tag, and goes with its tags and its entry among the referrers. Without
// them a tag that is set while its old manifest is removed would go as well.
type repoLocks struct {
	mu   sync.Mutex
	open map[string]*repoLock
}

type repoLock struct {
	sync.RWMutex
	users int
}

// lock waits for a repository, to have it alone or with others that need not be
// alone. Leases are taken before it, never while it is held.
func (l *repoLocks) lock(name string, alone bool) (unlock func()) {
	l.mu.Lock()
	if l.open == nil {
		l.open = map[string]*repoLock{}
	}
	r := l.open[name]
	if r == nil {
		r = new(repoLock)
		l.open[name] = r
	}
	r.users++
	l.mu.Unlock()
	free := r.RUnlock
	if alone {
		r.Lock()
		free = r.Unlock
	} else {
		r.RLock()
	}
	return func() {
		free()
		l.mu.Lock()
		defer l.mu.Unlock()
		if r.users--; r.users == 0 {
			delete(l.open, name)
		}
	}
}
