package cluster

import (
	"bytes"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func FuzzNetworkKeys(f *testing.F) {
	key := NetworkKey{ID: 1, Secret: bytes.Repeat([]byte{1}, NetworkKeySize)}
	f.Add(NetworkKeys{Since: time.Unix(1767225600, 0).UTC(), Current: key, Next: key}.Bytes())
	f.Add([]byte(`{"Current":{"ID":1,"Secret":"AA=="}}`))
	f.Add([]byte(`{"Current":{"ID":0}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ReadNetworkKeys(data)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		if k.Current.ID == 0 || len(k.Current.Secret) != NetworkKeySize {
			t.Errorf("%q: no key, and no error", data)
		}
		again, err := ReadNetworkKeys(k.Bytes())
		if err != nil || !bytes.Equal(again.Bytes(), k.Bytes()) {
			t.Errorf("%q: %v", data, err)
		}
	})
}
