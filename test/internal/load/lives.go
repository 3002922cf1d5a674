package load

import (
	"fmt"
	"slices"
	"time"
)

// lifeScript prints some lines at once, then ten a second until TERM, says how
// far it came, and returns its code. The `sleep` is waited for so that a signal
// is not: hundreds of such containers leave a small machine room to work.
const lifeScript = draw + `q=; trap q=1 TERM
awk -v r=$r 'BEGIN { for (i = 0; i < %[1]d; i++) print r, i }'
i=%[1]d
while [ -z "$q" ]; do
	n=0; while [ $n -lt 10 ]; do echo "$r $i"; i=$((i+1)); n=$((n+1)); done
	sleep 1 & wait $!
done
echo "$r $i end"; exit %[2]d`

// Lives lets the client lead containers through their lives, hold of them at
// a time, in random turns: created, started, logs read and followed, exec run
// in them, stopped or killed, removed. next tells whether there is one more to
// begin; the client returns when there is none and all of its own are gone.
func (c *Client) Lives(hold int, next func() bool) {
	var held []*life
	for more := true; c.ctx.Err() == nil; {
		if more && len(held) < hold && (len(held) == 0 || c.rng.IntN(3) > 0) {
			if more = next(); !more {
				continue
			}
			c.Begun.Add(1)
			l, err := c.born()
			if err != nil {
				c.blame(&c.odd, 1, "birth: client %d: %v", c.n, err)
				continue
			}
			held = append(held, l)
			continue
		}
		if len(held) == 0 {
			return
		}
		i := c.rng.IntN(len(held))
		c.Begun.Add(1)
		over, err := held[i].step()
		if err != nil {
			c.blame(&c.odd, 1, "life: client %d: %v", c.n, err)
		}
		if over || err != nil { // one that went wrong is left for the comparison to see
			c.Done.Add(1)
			held = slices.Delete(held, i, i+1)
		}
	}
	c.blame(&c.odd, len(held), "client %d was still at it with %d containers when the test ended", c.n, len(held))
}

// life is a container with what is to be done with it yet.
type life struct {
	*box
	todo []func() error
}

// born creates and starts a container and draws up the rest of its life: at
// least one exec that is judged and one reading of its log.
func (c *Client) born() (*life, error) {
	code := c.rng.IntN(120)
	b, err := c.create("life", fmt.Sprintf(lifeScript, c.rng.IntN(1000), code), code)
	if err != nil {
		return nil, err
	}
	if err := b.start(); err != nil {
		return nil, err
	}
	read := func() error { _, err := b.look(); return err }
	l := &life{box: b, todo: []func() error{b.surelyExec, read}}
	for range c.rng.IntN(3) {
		l.todo = append(l.todo, []func() error{read, b.exec, b.followOp, b.rename}[c.rng.IntN(4)])
	}
	c.rng.Shuffle(len(l.todo), func(i, j int) { l.todo[i], l.todo[j] = l.todo[j], l.todo[i] })
	// It can be judged from when it counts.
	l.todo = slices.Insert(l.todo, 0, b.untilCounting)
	return l, nil
}

// step does the next thing with it, or ends it.
func (l *life) step() (over bool, err error) {
	if len(l.todo) > 0 {
		do := l.todo[0]
		l.todo = l.todo[1:]
		return false, do()
	}
	switch l.rng.IntN(5) {
	case 0:
		if _, err := l.look(); err != nil {
			return true, err
		}
		return true, l.remove("?force=1&v=1")
	case 1:
		err = l.kill()
	default:
		err = l.stop()
	}
	if err != nil {
		return true, err
	}
	return true, l.remove("")
}

// surelyExec runs execs until no kill falls into one.
func (b *box) surelyExec() error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if judged, err := b.judgedExec(); judged || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s (%.12s): every exec of a minute was cut off", b.name, b.id)
}
