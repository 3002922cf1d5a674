package archive

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
)

// Digest is what a tree is that Backup has written: two archives have the same one when trees
// made of them have the same names, contents, owners, modes, times, links, devices and
// attributes, wherever their files have holes. It reads r to the archive's end.
// Kinds: InvalidArgument for a bad archive.
func Digest(r io.Reader) (string, error) {
	all := sha256.New()
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return hex.EncodeToString(all.Sum(nil)), nil
		}
		if err != nil {
			return "", badArchive(err)
		}
		if err := addEntry(all, hdr, tr); err != nil {
			return "", badArchive(err)
		}
	}
}

// attributePrefix begins the names of records that are extended attributes.
const attributePrefix = "SCHILY.xattr."

func addEntry(all hash.Hash, hdr *tar.Header, content io.Reader) error {
	kind := hdr.Typeflag
	if kind == tar.TypeGNUSparse || kind == '\x00' {
		kind = tar.TypeReg
	}
	fmt.Fprintf(all, "%q %c %o %d %d %d %q %d %d\n", path.Clean(hdr.Name), kind, hdr.Mode, hdr.Uid, hdr.Gid, hdr.ModTime.UnixNano(), hdr.Linkname, hdr.Devmajor, hdr.Devminor)
	for _, k := range sorted(hdr.PAXRecords) {
		if strings.HasPrefix(k, attributePrefix) {
			fmt.Fprintf(all, "%q %q\n", k, hdr.PAXRecords[k])
		}
	}
	if kind != tar.TypeReg {
		return nil
	}
	file := sha256.New()
	n, err := io.Copy(file, content)
	fmt.Fprintf(all, "%d %x\n", n, file.Sum(nil))
	return err
}
