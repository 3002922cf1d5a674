// Package codec turns JSON into what the OCI runtime works with, and back, without
// reflection (package plainjson): a function for each structure, which gen writes from
// the types themselves. After a change of a type, or a new version of the
// specification's: go generate ./internal/runtime/native/codec (TestGenerated tells).
package codec

//go:generate go run ./gen

import (
	"io"

	"escale.dev/escale/internal/runtime/native/plainjson"
	"escale.dev/escale/internal/runtime/native/plan"
	"escale.dev/escale/internal/runtime/native/record"
)

// SendPlan writes a plan and its filter; blocks while the other side does not read.
func SendPlan(w io.Writer, p *plan.Plan) error {
	b, err := WritePlan(p)
	if err != nil {
		return err
	}
	if err := plan.Send(w, plan.KindPlan, b); err != nil {
		return err
	}
	return plan.Send(w, plan.KindData, p.Filter)
}

// ReceivePlan is the other end of SendPlan.
func ReceivePlan(r io.Reader) (*plan.Plan, error) {
	b, err := plan.Expect(r, plan.KindPlan)
	if err != nil {
		return nil, err
	}
	p := &plan.Plan{}
	if err := ReadPlan(b, p); err != nil {
		return nil, err
	}
	if p.Filter, err = plan.Expect(r, plan.KindData); err != nil {
		return nil, err
	}
	return p, nil
}

// WriteList makes the text of an array of containers.
func WriteList(list *[]*record.Told) ([]byte, error) {
	return plainjson.Write(list, func(w *plainjson.Writer, v *[]*record.Told) {
		plainjson.WriteSlice(w, v, func(w *plainjson.Writer, v **record.Told) { plainjson.WritePointer(w, v, writeRecordTold) })
	})
}

// WritePids makes the text of an array of processes' numbers.
func WritePids(pids *[]int) ([]byte, error) {
	return plainjson.Write(pids, func(w *plainjson.Writer, v *[]int) { plainjson.WriteSlice(w, v, plainjson.WriteInt[int]) })
}
