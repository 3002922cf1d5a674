package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestWaitAcrossEngines: who waits while the engine goes gets no half answer for
// a whole one, and the next engine tells the code, also of what ended meanwhile.
func TestWaitAcrossEngines(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	api := e.API()
	defer api.Close()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return api.Dial(ctx) }}
	defer tr.CloseIdleConnections()
	for name, end := range map[string]func() error{"clean": e.Stop, "killed": e.Kill} {
		id := create(t, ctx, api, "", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "sleep 2; exit 7"}})
		if err := api.Do(ctx, "POST", "/containers/"+id+"/start", nil, nil); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(ctx, "POST", "http://docker/containers/"+id+"/wait?condition=next-exit", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req) // the header comes at once
		if err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) && !isReset(err) {
			t.Errorf("%s: who waited was answered %q, error %v", name, b, err)
		}
		resp.Body.Close()
		time.Sleep(2 * time.Second) // it ends while there is no engine
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		var res struct{ StatusCode int }
		if err := api.Do(ctx, "POST", "/containers/"+id+"/wait", nil, &res); err != nil || res.StatusCode != 7 {
			t.Errorf("%s: afterwards: %d, %v", name, res.StatusCode, err)
		}
		if err := api.Do(ctx, "DELETE", "/containers/"+id, nil, nil); err != nil {
			t.Error(err)
		}
	}
}

// isReset tells a connection that was cut off from one that ended.
func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}
