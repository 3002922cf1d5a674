package swarm

import (
	"encoding/csv"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/cli/spec"
	"escale.dev/escale/internal/cli/verb"
)

// settings are the options about the cluster as a whole.
type settings struct {
	flags                   *pflag.FlagSet
	history                 int64
	heartbeat, expiry       time.Duration
	snapshots, snapshotSpan uint64
	autolock                bool
	externalCA              externalCAs
}

func (s *settings) addFlags(f *pflag.FlagSet) {
	s.addCAFlags(f)
	f.Int64Var(&s.history, "task-history-limit", 5, "Tasks that ended which are kept, of each place of a service")
	f.DurationVar(&s.heartbeat, "dispatcher-heartbeat", 5*time.Second, "Time between two signs of life of a node (ns|us|ms|s|m|h)")
	f.Uint64Var(&s.snapshots, "max-snapshots", 0, "Snapshots of the store that are kept beside the last")
	f.Uint64Var(&s.snapshotSpan, "snapshot-interval", 10000, "Changes of the store between two snapshots")
}

func (s *settings) addCAFlags(f *pflag.FlagSet) {
	s.flags = f
	f.DurationVar(&s.expiry, "cert-expiry", 90*24*time.Hour, "How long certificates of nodes are valid (ns|us|ms|s|m|h)")
	f.Var(&s.externalCA, "external-ca", "Who else signs certificates: protocol=cfssl,url=…[,cacert=FILE]")
}

// merge puts what was given into a spec. root is the certificate of external signers
// that come without one.
func (s *settings) merge(to *swarm.Spec, root *string) {
	if s.flags.Changed("task-history-limit") {
		to.Orchestration.TaskHistoryRetentionLimit = &s.history
	}
	if s.flags.Changed("dispatcher-heartbeat") {
		to.Dispatcher.HeartbeatPeriod = s.heartbeat
	}
	if s.flags.Changed("max-snapshots") {
		to.Raft.KeepOldSnapshots = &s.snapshots
	}
	if s.flags.Changed("snapshot-interval") {
		to.Raft.SnapshotInterval = s.snapshotSpan
	}
	if s.flags.Changed("autolock") {
		to.EncryptionConfig.AutoLockManagers = s.autolock
	}
	s.mergeCA(to, root)
}

func (s *settings) mergeCA(to *swarm.Spec, root *string) {
	if s.flags.Changed("cert-expiry") {
		to.CAConfig.NodeCertExpiry = s.expiry
	}
	if !s.flags.Changed("external-ca") {
		return
	}
	to.CAConfig.ExternalCAs = s.externalCA.list
	for _, ca := range s.externalCA.list {
		if ca.CACert == "" && root != nil {
			ca.CACert = *root
		}
	}
}

func updateCommand(a *verb.App) *cobra.Command {
	var s settings
	var add, remove spec.List
	cmd := &cobra.Command{
		Use:               "update [OPTIONS]",
		Short:             "Change the cluster's settings",
		Example:           `escale swarm update --label-add escale.permit=privileged,devices`,
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().NFlag() == 0 {
				return pflag.ErrHelp
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			res, err := c.SwarmInspect(cmd.Context(), moby.SwarmInspectOptions{})
			if err != nil {
				return err
			}
			is := &res.Swarm.Spec
			locked := is.EncryptionConfig.AutoLockManagers
			s.merge(is, &res.Swarm.TLSInfo.TrustRoot)
			if err := relabel(&is.Labels, add.Values, remove.Values); err != nil {
				return err
			}
			if _, err := c.SwarmUpdate(cmd.Context(), moby.SwarmUpdateOptions{Version: res.Swarm.Version, Spec: *is}); err != nil {
				return err
			}
			a.Println("Swarm updated.")
			if !locked && is.EncryptionConfig.AutoLockManagers {
				return printKey(cmd.Context(), a, c, false)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&s.autolock, "autolock", false, "Ask for a key when a manager was restarted (true|false)")
	cmd.Flags().Var(&add, "label-add", "Add or change a label of the cluster: KEY[=VALUE]")
	cmd.Flags().Var(&remove, "label-rm", "Remove a label of the cluster, by its key")
	s.addFlags(cmd.Flags())
	return cmd
}

// relabel adds labels to some, and takes others away, which must be there.
func relabel(labels *map[string]string, add, remove []string) error {
	if *labels == nil {
		*labels = map[string]string{}
	}
	maps.Copy(*labels, spec.KeyValues(add))
	for _, k := range remove {
		if _, ok := (*labels)[k]; !ok {
			return fmt.Errorf("key %s doesn't exist in swarm's labels", k)
		}
		delete(*labels, k)
	}
	return nil
}

// listenAddr is ADDRESS|INTERFACE[:PORT], with what is left out filled in.
type listenAddr struct{ addr string }

const defaultListen = "0.0.0.0:2377"

func (l *listenAddr) String() string { return l.addr }
func (*listenAddr) Type() string     { return "node-addr" }

func (l *listenAddr) Set(s string) error {
	addr := strings.TrimPrefix(s, "tcp://")
	switch {
	case addr == "" && (s == "" || s == "tcp://"):
		return nil
	case strings.Contains(addr, "://"):
		return fmt.Errorf("invalid proto, expected tcp: %s", s)
	}
	host, port, err := net.SplitHostPort(l.addr)
	if err != nil {
		return err
	}
	if strings.HasSuffix(addr, "]:") {
		addr += port
	}
	u, err := url.Parse("tcp://" + addr)
	if err != nil {
		return err
	}
	h, p, err := net.SplitHostPort(u.Host)
	if err != nil {
		h, p, err = net.SplitHostPort(net.JoinHostPort(u.Host, port))
	}
	if err != nil {
		return fmt.Errorf("invalid bind address format: %s", s)
	}
	if h != "" {
		host = h
	}
	if p != "" {
		port = p
	}
	if n, err := strconv.Atoi(port); err != nil && n == 0 {
		return fmt.Errorf("invalid bind address format: %s", s)
	}
	l.addr = net.JoinHostPort(host, port) + u.Path
	return nil
}

// pemFile is a file whose text is sent.
type pemFile struct{ path, text string }

func (p *pemFile) String() string { return p.path }
func (*pemFile) Type() string     { return "pem-file" }

func (p *pemFile) Set(path string) error {
	text, err := readPEM(path)
	if err != nil {
		return err
	}
	p.path, p.text = path, text
	return nil
}

var errNoPEM = errors.New("file contents must be in PEM format")

func readPEM(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if block, _ := pem.Decode(text); block == nil {
		return "", errNoPEM
	}
	return string(text), nil
}

// externalCAs is --external-ca.
type externalCAs struct{ list []*swarm.ExternalCA }

func (*externalCAs) Type() string { return "external-ca" }

func (e *externalCAs) String() string {
	var list []string
	for _, ca := range e.list {
		list = append(list, fmt.Sprintf("%s: %s", ca.Protocol, ca.URL))
	}
	return strings.Join(list, ", ")
}

func (e *externalCAs) Set(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	ca := &swarm.ExternalCA{Options: map[string]string{}}
	given := map[string]bool{}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("invalid field '%s' must be a key=value pair", f)
		}
		given[strings.ToLower(key)] = true
		switch strings.ToLower(key) {
		case "protocol":
			if strings.ToLower(value) != string(swarm.ExternalCAProtocolCFSSL) {
				return fmt.Errorf("unrecognized external CA protocol %s", value)
			}
			ca.Protocol = swarm.ExternalCAProtocolCFSSL
		case "url":
			ca.URL = value
		case "cacert":
			ca.CACert, err = readPEM(value)
			if errors.Is(err, errNoPEM) {
				return errors.New("CA cert for external CA must be in PEM format")
			}
			if err != nil {
				return fmt.Errorf("unable to read CA cert for external CA: %w", err)
			}
		default:
			ca.Options[key] = value
		}
	}
	for _, key := range []string{"protocol", "url"} {
		if !given[key] {
			return fmt.Errorf("the external-ca option needs a %s= parameter", key)
		}
	}
	e.list = append(e.list, ca)
	return nil
}
