package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// VolumeBackupOptions say how a volume is written into an archive.
type VolumeBackupOptions struct {
	Compression string // none, gzip or zstd; empty: none
	NoPause     bool   // containers that have the volume run meanwhile
}

// VolumeBackup is a volume as a tar archive, which the caller closes. Read to its end
// without an error, it is whole.
type VolumeBackup struct {
	io.ReadCloser
	Size int64 // bytes of the volume's files, without what the archive adds; -1: not known
}

// VolumeBackup asks for all of a volume, as VolumeRestore takes it.
func (c *Client) VolumeBackup(ctx context.Context, name string, o VolumeBackupOptions) (*VolumeBackup, error) {
	q := url.Values{}
	if o.Compression != "" {
		q.Set("compression", o.Compression)
	}
	setTrue(q, "noPause", o.NoPause)
	res, err := c.Do(ctx, http.MethodGet, "/escale/volumes/"+name+"/archive", q, nil)
	if err != nil {
		return nil, err
	}
	b := &VolumeBackup{ReadCloser: res.Body, Size: -1}
	if n, err := strconv.ParseInt(res.Header.Get("Escale-Volume-Size"), 10, 64); err == nil {
		b.Size = n
	}
	return b, nil
}

// VolumeRestoreOptions say how a volume's content is replaced.
type VolumeRestoreOptions struct {
	Force   bool // although the volume is not empty
	NoPause bool // containers that have the volume run meanwhile
}

func (o VolumeRestoreOptions) query() url.Values {
	q := url.Values{}
	setTrue(q, "force", o.Force)
	setTrue(q, "noPause", o.NoPause)
	return q
}

func setTrue(q url.Values, key string, on bool) {
	if on {
		q.Set(key, "true")
	}
}

// VolumeRestore puts a tar archive, compressed or not, in the place of a volume's content: with
// an error the volume is as it was. A volume that is not there is made.
func (c *Client) VolumeRestore(ctx context.Context, name string, archive io.Reader, o VolumeRestoreOptions) error {
	res, err := c.send(ctx, http.MethodPut, "/escale/volumes/"+name+"/archive", o.query(), archive, "application/x-tar")
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// VolumeClone makes the volume dst what src is, under the rules of VolumeRestore. told,
// if it is not nil, hears of the bytes that were copied.
func (c *Client) VolumeClone(ctx context.Context, src, dst string, o VolumeRestoreOptions, told func(copied, total int64)) error {
	q := o.query()
	q.Set("to", dst)
	res, err := c.Do(ctx, http.MethodPost, "/escale/volumes/"+src+"/clone", q, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	for dec := json.NewDecoder(res.Body); ; {
		var line struct {
			Status         string
			Error          string
			ProgressDetail struct{ Current, Total int64 }
		}
		switch err := dec.Decode(&line); {
		case err == io.EOF:
			return errors.New("the engine ended while it cloned volume " + src)
		case err != nil:
			return err
		case line.Error != "":
			return &statusError{message: "Error response from daemon: " + line.Error}
		case line.Status == "Cloned":
			return nil
		case told != nil:
			told(line.ProgressDetail.Current, line.ProgressDetail.Total)
		}
	}
}
