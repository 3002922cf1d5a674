package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is one run of the program.
type bench struct {
	options
	run     string // label and image name of this run
	cliPath string // "" without a client
	ends    [2]*end
	results []*measure
	tarFile string // what import, load and save work with
	made    bool   // the image is ours and must go
}

// measure is one line of the table.
type measure struct {
	Name    string
	Unit    string // "ms", "MB", "k lines/s", "/s"
	Higher  bool   // more is better
	Samples [2][]float64
}

// ratio is how many times better B's median is.
func (m *measure) ratio() float64 {
	a, b := median(m.Samples[0]), median(m.Samples[1])
	if m.Higher {
		a, b = b, a
	}
	if b == 0 {
		return 0
	}
	return a / b
}

func median(s []float64) float64 {
	if len(s) == 0 {
		return 0
	}
	s = slices.Clone(s)
	slices.Sort(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// best is the smallest time or the highest rate.
func (m *measure) best(i int) float64 {
	switch {
	case len(m.Samples[i]) == 0:
		return 0
	case m.Higher:
		return slices.Max(m.Samples[i])
	}
	return slices.Min(m.Samples[i])
}

// line finds or makes the measure of that name.
func (b *bench) line(name, unit string, higher bool) *measure {
	for _, m := range b.results {
		if m.Name == name {
			return m
		}
	}
	m := &measure{Name: name, Unit: unit, Higher: higher}
	b.results = append(b.results, m)
	return m
}

// turns calls f n times at each end, turn about, after one call each that does
// not count, and keeps the milliseconds each call took.
func (b *bench) turns(ctx context.Context, name string, n int, f func(ctx context.Context, e *end) error) error {
	nothing := func(context.Context, *end) error { return nil }
	return b.prepared(ctx, name, n, nothing, f, nothing)
}

// prepared is turns with something before and after each, of which the time does not count.
func (b *bench) prepared(ctx context.Context, name string, n int, before, f, after func(ctx context.Context, e *end) error) error {
	m := b.line(name, "ms", false)
	for i := -1; i < n; i++ {
		for j, e := range b.ends {
			if err := before(ctx, e); err != nil {
				return fmt.Errorf("%s at %s, before: %w", name, e.name, err)
			}
			start := time.Now()
			if err := f(ctx, e); err != nil {
				return fmt.Errorf("%s at %s: %w", name, e.name, err)
			}
			if i >= 0 {
				m.Samples[j] = append(m.Samples[j], ms(time.Since(start)))
			}
			if err := after(ctx, e); err != nil {
				return fmt.Errorf("%s at %s, after: %w", name, e.name, err)
			}
		}
	}
	b.show(m)
	return nil
}

// timer gives what takes the time of things by the names of their lines, for the end j.
// Those of a first turn do not count.
func timer(lines map[string]*measure, j int, counts bool) func(what string, f func() error) error {
	return func(what string, f func() error) error {
		begin := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if m := lines[what]; counts {
			m.Samples[j] = append(m.Samples[j], ms(time.Since(begin)))
		}
		return nil
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// show prints a measure as soon as it is there.
func (b *bench) show(m *measure) {
	ratio := "none, one end only"
	if len(m.Samples[0]) > 0 && len(m.Samples[1]) > 0 {
		ratio = number(m.ratio())
	}
	fmt.Fprintf(os.Stderr, "%-44s A %s  B %s  ratio %s\n", m.Name, number(median(m.Samples[0])), number(median(m.Samples[1])), ratio)
}

func number(f float64) string {
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// prepare puts the image into both ends.
func (b *bench) prepare(ctx context.Context) error {
	if b.image != "" {
		for _, e := range b.ends {
			if err := e.call(ctx, "GET", "/images/"+b.image+"/json", nil, nil); err != nil {
				return err
			}
		}
		return nil
	}
	b.image, b.made = b.repo()+":1", true
	for i, e := range b.ends {
		if i > 0 && e.host == b.ends[0].host {
			break // one engine measured against itself: a second import would orphan the first
		}
		tar, err := busyboxTar()
		if err != nil {
			return err
		}
		if err := e.progress(ctx, "POST", "/images/create?fromSrc=-&repo="+b.repo()+"&tag=1", tar); err != nil {
			return fmt.Errorf("import at %s: %w", e.name, err)
		}
	}
	return nil
}

// repo is the repository name of this run's images.
func (b *bench) repo() string { return "escale-" + b.run }

// spec is a container of this run.
func (b *bench) spec(network string, cmd ...string) spec {
	s := spec{Image: b.image, Cmd: cmd, Labels: map[string]string{b.run: "1"}}
	s.HostConfig.NetworkMode = network
	return s
}

// sweep removes the containers of this run from both ends.
func (b *bench) sweep(ctx context.Context) error {
	var errs []error
	for _, e := range b.ends {
		if e == nil {
			continue
		}
		ids, err := e.list(ctx, b.run)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, parallel(8, len(ids), func(i int) error { return e.remove(ctx, ids[i]) }))
	}
	return errors.Join(errs...)
}

// cleanup removes whatever this run put anywhere.
func (b *bench) cleanup(ctx context.Context) error {
	// A second ^C must not leave half of it.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	errs := []error{b.sweep(ctx)}
	if b.tarFile != "" && b.tarFile != b.tar {
		errs = append(errs, os.Remove(b.tarFile))
	}
	for _, e := range b.ends {
		var images []struct{ RepoTags []string }
		if err := e.call(ctx, "GET", "/images/json", nil, &images); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, img := range images {
			for _, tag := range img.RepoTags {
				if strings.HasPrefix(tag, b.repo()+":") {
					errs = append(errs, e.call(ctx, "DELETE", "/images/"+tag+"?force=1", nil, nil))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// parallel calls f(0) … f(n-1), at most width at a time, and joins the errors.
func parallel(width, n int, f func(i int) error) error {
	errs := make([]error, n)
	gate := make(chan struct{}, width)
	for i := range n {
		gate <- struct{}{}
		go func() {
			defer func() { <-gate }()
			errs[i] = f(i)
		}()
	}
	for range width {
		gate <- struct{}{}
	}
	return errors.Join(errs...)
}

// machine describes where this runs.
type machine struct {
	Cores    int
	CPU      string
	Kernel   string
	MemoryMB int
	OS       string
	At       time.Time
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), At: time.Now().UTC().Truncate(time.Second)}
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			m.Kernel += string(rune(c))
		}
	}
	field := func(file, key, sep string) string {
		b, _ := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, sep); ok && strings.TrimSpace(k) == key {
				return strings.Trim(strings.TrimSpace(v), `"`)
			}
		}
		return ""
	}
	m.CPU = field("/proc/cpuinfo", "model name", ":")
	m.OS = field("/etc/os-release", "PRETTY_NAME", "=")
	var kb int
	fmt.Sscanf(field("/proc/meminfo", "MemTotal", ":"), "%d kB", &kb)
	m.MemoryMB = kb >> 10
	return m
}

// report is the table, in markdown.
func (b *bench) report() string {
	var s strings.Builder
	m := thisMachine()
	fmt.Fprintf(&s, "\nmachine: %d cores (%s), %d MB, kernel %s, %s; %s\n", m.Cores, m.CPU, m.MemoryMB, m.Kernel, m.OS, m.At.Format(time.RFC3339))
	for _, e := range b.ends {
		fmt.Fprintf(&s, "%s: %s (%s)\n", e.name, e.version, e.host)
	}
	fmt.Fprintf(&s, "\n| %-44s | %-10s | %9s | %9s | %9s | %9s | %7s |\n", "work", "unit", "A best", "A median", "B best", "B median", "B is ×")
	fmt.Fprintf(&s, "|%s|%s|%s|%s|%s|%s|%s|\n", strings.Repeat("-", 46), strings.Repeat("-", 12),
		strings.Repeat("-", 11), strings.Repeat("-", 11), strings.Repeat("-", 11), strings.Repeat("-", 11), strings.Repeat("-", 9))
	for _, r := range b.results {
		if len(r.Samples[0])+len(r.Samples[1]) == 0 {
			continue
		}
		cell := func(i int, f float64) string {
			if len(r.Samples[i]) == 0 {
				return "–"
			}
			return number(f)
		}
		ratio := "–"
		if len(r.Samples[0]) > 0 && len(r.Samples[1]) > 0 {
			ratio = number(r.ratio())
		}
		fmt.Fprintf(&s, "| %-44s | %-10s | %9s | %9s | %9s | %9s | %7s |\n", r.Name, r.Unit,
			cell(0, r.best(0)), cell(0, median(r.Samples[0])), cell(1, r.best(1)), cell(1, median(r.Samples[1])), ratio)
	}
	return s.String()
}

// writeJSON writes the machine, the ends and every sample.
func (b *bench) writeJSON(file string) error {
	type line struct {
		*measure
		Median [2]float64
		Best   [2]float64
		Ratio  float64
	}
	out := struct {
		Machine machine
		A, B    struct{ Host, Version string }
		Results []line
	}{Machine: thisMachine()}
	out.A.Host, out.A.Version = b.ends[0].host, b.ends[0].version
	out.B.Host, out.B.Version = b.ends[1].host, b.ends[1].version
	for _, m := range b.results {
		out.Results = append(out.Results, line{m, [2]float64{median(m.Samples[0]), median(m.Samples[1])}, [2]float64{m.best(0), m.best(1)}, m.ratio()})
	}
	raw, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}
