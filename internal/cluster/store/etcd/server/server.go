// Package server is the program of the cluster's store: etcd's own server, made to be the
// child of an engine.
package server

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"escale.dev/escale/internal/cluster/store/etcd/child"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Main runs the server as it is told on stdin, until that ends; it returns the exit code.
// It reports on stdout and logs JSON on stderr.
func Main(stdin io.Reader, stdout, stderr io.Writer) int {
	signal.Ignore(syscall.SIGINT) // a Ctrl-C is the engine's affair
	in := bufio.NewReader(stdin)
	out := &reports{e: json.NewEncoder(stdout)}
	if err := run(in, out, stderr); err != nil {
		out.tell(child.Report{Err: err.Error(), Gone: errors.Is(err, errGone), Again: errors.Is(err, errAgain)})
		return 1
	}
	return 0
}

// Why a server ends that has words of its own for it.
var (
	errGone  = errors.New("a member of a cluster that has lost what it knew may not begin with nothing: remove it from the cluster and let it join anew")
	errAgain = errors.New("the roots that it trusts have changed")
)

// reports are told one after the other.
type reports struct {
	mu   sync.Mutex
	e    *json.Encoder
	last child.Report
}

func (r *reports) tell(report child.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if report != r.last {
		r.last = report
		_ = r.e.Encode(report) // who does not listen has ended, and stdin says so
	}
}

// run runs the server until stdin ends.
func run(in *bufio.Reader, out *reports, logs io.Writer) error {
	var cfg child.Config
	text, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(text, &cfg)
	}
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	c, err := embedded(cfg)
	if err != nil {
		return err
	}
	var ending atomic.Bool
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger(logs, &ending))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, in)
		ending.Store(true)
	}()
	e, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer e.Close()
	again, done := rooted(cfg.CA)
	defer done()
	ready := e.Server.ReadyNotify()
	report := child.Report{Member: uint64(e.Server.MemberID())}
	for {
		changed := e.Server.LeaderChangedNotify()
		report.Leads = e.Server.Leader() == e.Server.MemberID()
		out.tell(report)
		select {
		case <-ready:
			ready, report.Ready = nil, true
		case <-changed:
			report.Choices++
		case err := <-e.Err():
			return err
		case <-e.Server.StopNotify():
			return errors.New("the server has stopped")
		case <-again:
			return errAgain
		case <-ended:
			return nil
		}
	}
}

// How often it is looked whether a root is trusted no more, and for how long at most a server then
// waits, so that not all members are away at once.
const (
	looking  = 2 * time.Second
	together = 20 * time.Second
)

// rooted gives what is closed a while after a root has gone from the file of them: the server
// reads it once. While a root is being exchanged, and both are in the file, those who have
// certificates of the next one show by another that the first vouches for it: that is no reason
// to end. Call done at the end.
func rooted(path string) (changed <-chan struct{}, done func()) {
	out, end := make(chan struct{}), make(chan struct{})
	done = sync.OnceFunc(func() { close(end) })
	first, err := os.ReadFile(path)
	if path == "" || err != nil {
		return nil, done
	}
	go func() {
		pause := looking
		for other := false; ; {
			select {
			case <-time.After(pause):
			case <-end:
				return
			}
			if other {
				close(out)
				return
			}
			if now, err := os.ReadFile(path); err == nil && lost(first, now) {
				other, pause = true, rand.N(together)
			}
		}
	}()
	return out, done
}

// lost tells whether a certificate of a PEM is not in another one any more.
func lost(before, now []byte) bool {
	have := map[string]bool{}
	for b, rest := pem.Decode(now); b != nil; b, rest = pem.Decode(rest) {
		have[string(b.Bytes)] = true
	}
	for b, rest := pem.Decode(before); b != nil; b, rest = pem.Decode(rest) {
		if !have[string(b.Bytes)] {
			return true
		}
	}
	return false
}

// segment is the size of the files of the log, which are there before they are full.
const segment = 16 << 20

// Sizes of requests: a commit holds as many objects as store.MaxChanges, some of them with
// half a megabyte of data.
const (
	MaxRequest  = 10 << 20
	defaultKeep = "5m"
	wasted      = 64 // MiB of free space in the database at which a start shrinks it
)

// known tells why a member that is to have data has none.
func known(cfg child.Config) error {
	logs := filepath.Join(cfg.Dir, "member", "wal")
	if _, err := os.ReadDir(logs); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // which may go by
	}
	if !cfg.Fresh && !wal.Exist(logs) {
		return fmt.Errorf("there is no log in %s: %w", logs, errGone)
	}
	return nil
}

// embedded makes etcd's configuration of ours.
func embedded(cfg child.Config) (*embed.Config, error) {
	if cfg.Advertise == "" {
		cfg.Advertise = cfg.Listen
	}
	if cfg.Cluster == "" {
		cfg.Cluster = cfg.Name + "=" + cfg.Advertise
	}
	listen, err1 := url.Parse(cfg.Listen)
	advertise, err2 := url.Parse(cfg.Advertise)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(cfg.Dir, 0o700), os.MkdirAll(filepath.Dir(cfg.Socket), 0o700)); err != nil {
		return nil, err
	}
	if listen.Scheme == "unix" { // etcd takes the host for the path
		listen = &url.URL{Scheme: listen.Scheme, Host: listen.Path}
		if err := os.Remove(listen.Host); err != nil && !errors.Is(err, os.ErrNotExist) { // of a server that was killed
			return nil, err
		}
	}
	if err := known(cfg); err != nil {
		return nil, err
	}
	wal.SegmentSizeBytes = segment
	c := embed.NewConfig()
	socket := url.URL{Scheme: "unix", Path: cfg.Socket}
	c.Name, c.Dir = cfg.Name, cfg.Dir
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{socket}, []url.URL{socket}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*listen}, []url.URL{*advertise}
	c.InitialCluster, c.InitialClusterToken, c.ForceNewCluster = cfg.Cluster, cfg.Token, cfg.Force
	if cfg.Join {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	if cfg.Cert != "" {
		c.PeerTLSInfo = transport.TLSInfo{CertFile: cfg.Cert, KeyFile: cfg.Key, TrustedCAFile: cfg.CA, ClientCertAuth: true, SkipClientSANVerify: true}
		if cfg.Role != "" {
			c.PeerTLSInfo.ServerName, c.PeerTLSInfo.AllowedHostnames = cfg.Role, []string{cfg.Role}
		}
	}
	c.QuotaBackendBytes = cfg.Quota
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, defaultKeep
	if cfg.Keep > 0 {
		c.AutoCompactionRetention = cfg.Keep.String()
	}
	if cfg.Heartbeat > 0 {
		c.TickMs = uint(cfg.Heartbeat.Milliseconds())
	}
	if cfg.Election > 0 {
		c.ElectionMs = uint(cfg.Election.Milliseconds())
	}
	c.MaxRequestBytes, c.EnableGRPCGateway, c.BootstrapDefragThresholdMegabytes = MaxRequest, false, wasted
	c.SnapshotCount = 5000 // entries in memory until a snapshot: a manager is small
	return c, nil
}

// logger writes JSON that package child reads. Once the server is to end, what it says of
// its ends is of no interest.
func logger(w io.Writer, ending *atomic.Bool) *zap.Logger {
	enc := zapcore.NewJSONEncoder(zapcore.EncoderConfig{LevelKey: "level", NameKey: "logger", MessageKey: "msg", EncodeLevel: zapcore.LowercaseLevelEncoder, EncodeDuration: zapcore.StringDurationEncoder})
	return zap.New(quiet{zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), zapcore.WarnLevel), ending})
}

// quiet leaves out what concerns nobody.
type quiet struct {
	zapcore.Core
	ending *atomic.Bool
}

// idle is advice for servers that serve HTTP or know users, which this one does not, and what
// a server says that has not written a snapshot yet.
var idle = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
	"Failed to detect schema version",
	"Failed to detect storage schema version. Please wait till wal snapshot before upgrading cluster.",
	"failed to update storage version",
}

// Check implements zapcore.Core.
func (q quiet) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Level < zapcore.DPanicLevel && (q.ending.Load() || slices.Contains(idle, e.Message)) {
		return c
	}
	return q.Core.Check(e, c)
}

// With implements zapcore.Core.
func (q quiet) With(f []zapcore.Field) zapcore.Core { return quiet{q.Core.With(f), q.ending} }
