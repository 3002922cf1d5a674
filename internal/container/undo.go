package container

// undoStack holds what takes back the steps done so far, newest first.
type undoStack []func()

func (u *undoStack) add(f func()) { *u = append(*u, f) }

// run takes everything back; it may be called once.
func (u *undoStack) run() {
	for i := len(*u) - 1; i >= 0; i-- {
		(*u)[i]()
	}
	*u = nil
}
