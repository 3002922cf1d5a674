package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/tty"
)

func clusterBackupCommand(a *app) *cobra.Command {
	var passphrase string
	cmd := &cobra.Command{
		Use:   "backup [OPTIONS] [FILE|-]",
		Short: "Write all that the cluster is into a file, while it goes on",
		Long: `Write all that the cluster is into a file, while it goes on: services, networks, secrets, the nodes, the tokens and the
root by which they know each other; no volumes and no images. Any manager can be asked. The file is sealed: with a
passphrase, or, where managers are locked and none is given, with their unlock key.`,
		Example: `escale cluster backup cluster.backup
escale cluster backup --passphrase-file phrase | ssh other 'cat > cluster.backup'`,
		Args: maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := "-"
			if len(args) == 1 {
				file = args[0]
			}
			return clusterBackup(cmd.Context(), a, file, passphrase)
		},
	}
	cmd.Flags().StringVar(&passphrase, "passphrase-file", "", "File whose first line is the passphrase (it is asked for otherwise)")
	return cmd
}

func clusterBackup(ctx context.Context, a *app, file, phraseFile string) error {
	if file == "-" && tty.IsTerminal(a.out) {
		return errors.New("cowardly refusing to write a backup to a terminal: name a file, or redirect")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	phrase := ""
	if phraseFile != "" {
		phrase, err = firstLine(phraseFile)
	} else if s, failed := c.SwarmInspect(ctx, moby.SwarmInspectOptions{}); failed != nil {
		err = failed
	} else if f, ok := a.in.(*os.File); ok && tty.IsTerminal(f) && !s.Swarm.Spec.EncryptionConfig.AutoLockManagers {
		phrase, err = newPassphrase(a, f)
	}
	if err != nil {
		return err
	}
	copyTo := func(w io.Writer) error {
		b, err := c.ClusterBackup(ctx, phrase)
		if err != nil {
			return err
		}
		defer b.Close()
		if b.Stale {
			fmt.Fprintln(a.err, "WARNING: most managers do not answer: this is what the one that was asked knows")
		}
		m := newMeter(a, "Backing up the cluster", 0)
		defer m.done()
		n, err := io.Copy(w, m.reader(b))
		if err == nil {
			m.done()
			fmt.Fprintf(a.err, "%d bytes\n", n)
		}
		return err
	}
	if file == "-" {
		return copyTo(a.out)
	}
	return writeWhole("back up the cluster", file, copyTo)
}

// firstLine is that of a file, without its end.
func firstLine(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 64<<10)).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" && err == nil {
		err = fmt.Errorf("%s: its first line is empty", file)
	}
	return line, err
}

// newPassphrase asks for one twice.
func newPassphrase(a *app, f *os.File) (string, error) {
	first, err := askFor(a, f, "Passphrase for the backup: ")
	if err != nil {
		return "", err
	}
	again, err := askFor(a, f, "Once more: ")
	if err == nil && first != again {
		err = errors.New("the two passphrases differ")
	}
	return first, err
}

// askFor reads a line that is not shown.
func askFor(a *app, f *os.File, words string) (string, error) {
	fmt.Fprint(a.err, words)
	line, err := tty.ReadPassword(f)
	fmt.Fprintln(a.err)
	return line, err
}

func clusterRestoreCommand(a *app) *cobra.Command {
	var o client.ClusterRestoreOptions
	var secret string
	cmd := &cobra.Command{
		Use:   "restore [OPTIONS] FILE|-",
		Short: "Begin a cluster anew from a backup, with this machine as its only manager",
		Long: `Begin a cluster anew from a backup, with this machine as its only manager: the same cluster, with the same services,
networks, secrets and tokens. Nodes that run come back to it by themselves when it answers at the address of a manager
that they know; others leave (swarm leave --force) and join anew. Managers that the backup knows are asked before: while one
leads the cluster it is not begun a second time, unless with --force. It is done whole or not at all.`,
		Example: `escale cluster restore --advertise-addr 192.0.2.1 cluster.backup
escale cluster restore --force cluster.backup`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return clusterRestore(cmd.Context(), a, args[0], secret, o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Force, "force", "f", false, "Set back a manager to what the backup has, or restore although the cluster goes on elsewhere")
	f.StringVar(&secret, "passphrase-file", "", "File whose first line is the passphrase or unlock key (it is asked for otherwise)")
	f.StringVar(&o.ListenAddr, "listen-addr", "", "Where other managers reach this one: ADDRESS|INTERFACE[:PORT]")
	f.StringVar(&o.AdvertiseAddr, "advertise-addr", "", "Address that others are told: ADDRESS|INTERFACE[:PORT]")
	f.StringVar(&o.DataPathAddr, "data-path-addr", "", "Address for what containers send each other: ADDRESS|INTERFACE")
	return cmd
}

func clusterRestore(ctx context.Context, a *app, file, secretFile string, o client.ClusterRestoreOptions) error {
	in, total, err := openInput(a, file, "a backup")
	if err != nil {
		return err
	}
	defer in.Close()
	body := bufio.NewReaderSize(in, maxBackupHead)
	secret, unlocks := "", lockedByKey(body)
	if secretFile != "" {
		line, err := firstLine(secretFile)
		if err != nil {
			return err
		}
		secret = line
	} else if f, ok := a.in.(*os.File); ok && tty.IsTerminal(f) {
		words := "Passphrase of the backup: "
		if unlocks {
			words = "Unlock key that the cluster had: "
		}
		line, err := askFor(a, f, words)
		if err != nil {
			return err
		}
		secret = line
	}
	if o.Secret.Passphrase = secret; unlocks {
		o.Secret = client.ClusterSecret{UnlockKey: secret}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	m := newMeter(a, "Restoring the cluster", total)
	defer m.done()
	done, err := c.ClusterRestore(ctx, m.reader(body), o)
	if err != nil {
		return err
	}
	m.done()
	fmt.Fprintf(a.err, "Cluster %s is as it was on %s (%d objects, revision %d).\n", done.Cluster, done.Made.Local().Format(time.DateTime), done.Objects, done.Revision)
	a.println(done.Node)
	return nil
}

// maxBackupHead is how much of a backup is looked at for how it is locked, in bytes.
const maxBackupHead = 64 << 10

// lockedByKey tells whether a backup says of itself that an unlock key opens it. What is no
// backup the engine refuses.
func lockedByKey(r *bufio.Reader) bool {
	begin, _ := r.Peek(4 << 10) // a short file is all there
	_, rest, _ := bytes.Cut(begin, []byte("\n"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	var head struct{ Lock struct{ By string } }
	return json.Unmarshal(line, &head) == nil && head.Lock.By == "unlock key"
}
