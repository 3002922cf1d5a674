package kill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/client"
	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/internal/load"
)

// appsImage is what the app of TestKillApps runs.
const appsImage = "kill-apps:bb"

// version is what an app can be asked to be.
type version struct {
	number   int // tells it from others in what runs
	replicas int
	bad      bool // its containers end at once: it is gone back from
	internal bool // its network is: another than that of a version that is not so
}

// spec is the app: a database that the web front needs.
func (v version) spec() harness.App {
	run := "trap 'exit 0' TERM; while :; do sleep 0.1 & wait $!; done"
	web := harness.AppService{Image: appsImage, Cmd: []string{"sh", "-c", run}, Replicas: v.replicas, Env: []string{fmt.Sprint("V=", v.number)}, StartNew: v.number%2 == 0, Needs: map[string]string{"db": "service_healthy"}}
	if v.bad {
		web.Cmd = []string{"sh", "-c", "exit 3"}
	}
	db := harness.AppService{Image: appsImage, Cmd: []string{"sh", "-c", run}, Health: "true", Volumes: map[string]string{"data": "/data"}, Secrets: []harness.AppSecret{{Name: "key"}}, Env: []string{"V=0"}}
	return harness.App{Name: "shop", Internal: v.internal, Services: map[string]harness.AppService{"web": web, "db": db}, Volumes: []string{"data"}, Secrets: map[string]string{"key": "hush"}}
}

// life is an app on an engine that is killed.
type life struct {
	t    *testing.T
	ctx  context.Context
	e    *harness.Engine
	api  *harness.API
	c    *client.Client
	rng  *rand.Rand
	mu   sync.Mutex
	had  map[uint64]version // what was asked, by the number that it got or would have got
	last uint64             // the number of the app when the last round was at rest; 0: there is none
	good version            // what ran then
	next int

	usual     map[string]time.Duration // how long requests take, by what they are
	cut, done int
}

// TestKillApps kills the engine while an app comes up, is changed, goes back, is stopped
// by clients and removed. Each time it must end as it was asked last.
func TestKillApps(t *testing.T) {
	if why := harness.Needs(); why != "" {
		t.Skip(why)
	}
	rounds := load.EnvInt("ESCALE_KILL_ROUNDS", 5)
	chosen := *seed
	if chosen == 0 {
		chosen = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d, %d rounds", chosen, rounds)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+time.Duration(rounds)*harness.Patience(40*time.Second))
	defer cancel()
	e := load.StartEngine(t, ctx, harness.Options{})
	l := &life{t: t, ctx: ctx, e: e, api: e.API(), rng: rand.New(rand.NewPCG(chosen, 0)), had: map[uint64]version{}, usual: map[string]time.Duration{}}
	defer l.api.Close()
	c, err := client.New(client.Options{Host: e.Host()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.c = c
	tar, err := harness.BusyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.api.Import(ctx, "kill-apps", "bb", strings.NewReader(string(tar))); err != nil {
		t.Fatal(err)
	}
	l.must(l.put(version{replicas: 1}))
	l.rest()
	l.must(l.c.AppRemove(ctx, "shop", true))
	l.until("nothing is left", l.gone)
	l.last = 0
	time.Sleep(500 * time.Millisecond)
	l.must(e.Mark())
	for i := range rounds {
		if l.round(i); t.Failed() {
			load.KeepLog(t, e)
			return
		}
	}
	if l.last != 0 {
		l.must(l.c.AppRemove(ctx, "shop", true))
		l.until("nothing is left", l.gone)
	}
	left, err := e.Leaks(ctx)
	l.must(err)
	if !left.Empty() {
		load.KeepLog(t, e)
		t.Errorf("left behind:\n%s", left)
	}
	fmt.Printf("apps: rounds %d, %s, %d requests cut off, %d answered, seed %d\n", rounds, left.Counts(), l.cut, l.done, chosen)
}

func (l *life) must(err error) {
	l.t.Helper()
	if err != nil {
		load.KeepLog(l.t, l.e)
		if a, e := l.c.App(l.ctx, "shop"); e == nil {
			b, _ := json.MarshalIndent(a, "", " ")
			l.t.Logf("the app: %s", b)
		}
		l.t.Fatal(err)
	}
}

// put asks for a version. Its number is known also when there is no answer.
func (l *life) put(v version) error {
	l.mu.Lock()
	l.had[l.last+1] = v
	l.mu.Unlock()
	p, err := l.c.AppPut(l.ctx, "shop", v.spec().JSON(), client.AppPutOptions{})
	if err == nil {
		l.mu.Lock()
		l.had[p.To] = v
		l.mu.Unlock()
	}
	return err
}

// round does something to the app, kills the engine meanwhile, and looks at what
// becomes of it.
func (l *life) round(i int) {
	what, ask := l.choose()
	answered := make(chan error, 1)
	var took time.Duration
	sort, _, _ := strings.Cut(what, " ")
	// Amid the request, mostly; else amid what comes of it.
	usual, ok := l.usual[sort]
	if !ok {
		usual = 10 * time.Millisecond
	}
	until := time.Duration(l.rng.Int64N(int64(usual) + 1))
	if l.rng.IntN(3) == 0 {
		until = time.Duration(l.rng.IntN(1200)) * time.Millisecond
	}
	begun := time.Now()
	go func() {
		err := ask()
		took = time.Since(begun)
		answered <- err
	}()
	time.Sleep(until)
	l.must(l.e.Kill())
	err := <-answered
	switch {
	case err == nil:
		l.done++
		if l.usual[sort] = took; ok {
			l.usual[sort] = (usual + took) / 2
		}
	case harness.Status(err) >= 400 && harness.Status(err) < 500:
		l.must(fmt.Errorf("round %d: %s: %w", i, what, err))
	default:
		l.cut++
	}
	// Of a new version, an end is a reason to go back from it.
	if !strings.HasPrefix(what, "update") && !strings.HasPrefix(what, "rollback") && l.rng.IntN(2) == 0 {
		l.endOne()
		what += ", a process ended"
	}
	for l.rng.IntN(3) == 0 { // and again, while it comes up
		l.must(l.e.Launch())
		time.Sleep(time.Duration(l.rng.IntN(500)) * time.Millisecond)
		l.must(l.e.Kill())
	}
	start, cancel := context.WithTimeout(l.ctx, harness.Patience(30*time.Second))
	defer cancel()
	l.must(l.e.Start(start))
	l.t.Logf("round %d: %s (%v)", i, what, err)
	if strings.HasPrefix(what, "down") {
		// Whether it was heard is unknown; heard twice it is the same.
		if err := l.c.AppRemove(l.ctx, "shop", true); err != nil && !strings.Contains(err.Error(), "No such app") {
			l.must(err)
		}
		l.until("nothing is left", l.gone)
		l.last = 0
		return
	}
	if a, err := l.c.App(l.ctx, "shop"); err != nil || a.Removed {
		if l.last != 0 || err == nil {
			l.must(errors.Join(errors.New("the app is gone, and was not to be removed"), err))
		}
		return // it was never heard of
	}
	if strings.HasPrefix(what, "client") { // stopped or not, all of it is to run again
		l.must(l.put(l.good))
	}
	l.rest()
}

// choose picks what to do.
func (l *life) choose() (string, func() error) {
	l.next++
	v := version{number: l.next, replicas: 1 + l.rng.IntN(3), internal: l.rng.IntN(3) == 0}
	if l.last == 0 {
		return fmt.Sprintf("up %+v", v), func() error { return l.put(v) }
	}
	switch n := l.rng.IntN(10); n {
	case 0, 1:
		v.bad = true
		fallthrough
	case 2, 3, 4:
		return fmt.Sprintf("update %+v", v), func() error { return l.put(v) }
	case 5:
		v = l.good
		v.replicas = 1 + l.rng.IntN(4)
		return fmt.Sprintf("scale %+v", v), func() error { return l.put(v) }
	case 6:
		var before []uint64
		for number, v := range l.had {
			if number < l.last && !v.bad {
				before = append(before, number)
			}
		}
		if len(before) == 0 {
			break
		}
		to := slices.Max(before)
		l.had[l.last+1] = l.had[to]
		return fmt.Sprintf("rollback to %d %+v", to, l.had[to]), func() error {
			_, err := l.c.AppRollback(l.ctx, "shop", to, false)
			if err != nil && strings.Contains(err.Error(), "has no revision") {
				return nil // it is as old as nobody remembers
			}
			return err
		}
	case 7:
		return "down", func() error { return l.c.AppRemove(l.ctx, "shop", true) }
	}
	name := []string{"shop-web-1", "shop-db-1"}[l.rng.IntN(2)]
	method, path := "POST", "/containers/"+name+"/stop"
	if l.rng.IntN(2) == 0 {
		method, path = "DELETE", "/containers/"+name+"?force=1"
	}
	return "client " + method + " " + path, func() error { return l.api.Do(l.ctx, method, path, nil, nil) }
}

// endOne kills a process of the app while no engine looks.
func (l *life) endOne() {
	records, err := filepath.Glob(filepath.Join(l.e.DataRoot, "containers", "*", "container.json"))
	l.must(err)
	for _, path := range records {
		var r struct{ State struct{ Pid int } }
		if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &r) == nil && r.State.Pid > 0 {
			_ = syscall.Kill(r.State.Pid, syscall.SIGKILL) // it may have ended by itself
			return
		}
	}
}

// seen is what the engine tells of a container.
type seen struct {
	ID     string
	Name   string
	State  struct{ Status string }
	Config struct{ Env []string }
}

// running are the containers of the app that run, by name, with their versions.
func (l *life) running() (map[string]string, error) {
	var list []struct{ ID string }
	if err := l.api.Do(l.ctx, "GET", `/containers/json?filters={"label":["com.docker.compose.project=shop"]}`, nil, &list); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, c := range list {
		var s seen
		if err := l.api.Do(l.ctx, "GET", "/containers/"+c.ID+"/json", nil, &s); err != nil {
			return nil, err
		}
		for _, env := range s.Config.Env {
			if v, ok := strings.CutPrefix(env, "V="); ok {
				out[strings.TrimPrefix(s.Name, "/")] = v
			}
		}
	}
	return out, nil
}

// rest waits until the app is as it was asked last, or what was before a bad version.
func (l *life) rest() {
	l.t.Helper()
	var v version
	l.until("it is as it was asked", func() error {
		a, err := l.c.App(l.ctx, "shop")
		if err != nil {
			return err
		}
		l.mu.Lock()
		known, ok := l.had[a.Asked]
		l.mu.Unlock()
		switch {
		case !ok:
			return fmt.Errorf("nobody asked for number %d", a.Asked)
		case known.bad && a.Phase != "reverted", !known.bad && (a.Phase != "steady" || a.Number != a.Asked || a.Message != ""):
			return fmt.Errorf("%+v: it is %s %s", known, a.Phase, a.Message)
		}
		if v = known; v.bad {
			v = l.good
		}
		want := map[string]string{"shop-db-1": "0"}
		for n := range v.replicas {
			want[fmt.Sprintf("shop-web-%d", n+1)] = fmt.Sprint(v.number)
		}
		is, err := l.running()
		if err != nil {
			return err
		}
		if fmt.Sprint(is) != fmt.Sprint(want) {
			return fmt.Errorf("%+v: %v run, want %v", known, is, want)
		}
		var net struct{ Internal bool }
		if err := l.api.Do(l.ctx, "GET", "/networks/shop_default", nil, &net); err != nil {
			return err
		}
		if net.Internal != known.internal {
			return fmt.Errorf("%+v: its network is internal: %v", known, net.Internal)
		}
		l.last, l.good = a.Asked, v
		return nil
	})
}

// gone tells whether nothing of the app is left.
func (l *life) gone() error {
	if _, err := l.c.App(l.ctx, "shop"); err == nil || !strings.Contains(err.Error(), "No such app") {
		return fmt.Errorf("the app: %v", err)
	}
	var list []struct{ ID string }
	if err := l.api.Do(l.ctx, "GET", "/containers/json?all=1", nil, &list); err != nil || len(list) > 0 {
		return fmt.Errorf("%d containers are left, %v", len(list), err)
	}
	for _, path := range []string{"/networks/shop_default", "/volumes/shop_data"} {
		if st, _, err := l.api.Raw(l.ctx, "GET", path, nil); err != nil || st != 404 {
			return fmt.Errorf("%s: %d, %v", path, st, err)
		}
	}
	return nil
}

// until waits for something to be so.
func (l *life) until(what string, is func() error) {
	l.t.Helper()
	end := time.Now().Add(harness.Patience(60 * time.Second))
	for {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(end) || l.ctx.Err() != nil {
			l.must(fmt.Errorf("until %s: %w", what, err))
		}
		time.Sleep(50 * time.Millisecond)
	}
}
