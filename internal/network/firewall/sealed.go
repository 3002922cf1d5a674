package firewall

import (
	"slices"

	"escale.dev/escale/internal/sys/nft"
)

// Sealed is a network between hosts whose VXLAN packets go encrypted or not at all.
type Sealed struct {
	VNI  uint32
	From uint16 // UDP port from which its packets come, and those of no other network
	To   uint16 // and to which
}

// guardSealed adds the chains that drop what is not encrypted: nothing when no network is
// to be. By their ports the kernel's policies tell networks apart; that a packet bears the
// number of one and the port of another is seen here only.
func guardSealed(t *nft.Table, list []Sealed) {
	if len(list) == 0 {
		return
	}
	in := nft.Chain{Name: "sealed-in", Base: &nft.Base{Type: "filter", Hook: "input", Priority: 0}}
	out := nft.Chain{Name: "sealed-out", Base: &nft.Base{Type: "filter", Hook: "output", Priority: 0}}
	for _, s := range list {
		in.Rules = append(in.Rules,
			nft.Rule{nft.ToUDP(s.To), nft.OfVNI(s.VNI), nft.CameClear(), nft.Drop()},
			nft.Rule{nft.ToUDP(s.To), nft.OfVNI(s.VNI), nft.NotFromUDP(s.From), nft.Drop()})
		out.Rules = append(out.Rules, nft.Rule{nft.ToUDP(s.To), nft.OfVNI(s.VNI), nft.GoesClear(), nft.Drop()})
	}
	t.Chains = append(t.Chains, in, out)
}

// SetSealed says which networks are to be encrypted, all of them, in one step. Idempotent. On
// an error all stays as it was.
func (f *Firewall) SetSealed(list []Sealed) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Equal(f.sealed, list) {
		return nil
	}
	old := f.sealed
	f.sealed = slices.Clone(list)
	if !f.opened { // Open writes it
		return nil
	}
	if err := f.write(f.wanted(), nil, nil); err != nil {
		f.sealed = old
		return err
	}
	return nil
}
