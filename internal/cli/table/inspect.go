package table

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"text/template"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Inspector prints objects: all of them as one JSON list, or each through a
// template.
type Inspector struct {
	tmpl    *template.Template
	compact bool
	out     bytes.Buffer
	raw     [][]byte
}

// NewInspector prepares for a format: "" (indented JSON), "json" (on one line)
// or a template.
func NewInspector(format string) (*Inspector, error) {
	in := &Inspector{compact: format == "json"}
	if format == "" || in.compact {
		return in, nil
	}
	var err error
	if in.tmpl, err = Parse(format); err != nil {
		return nil, fmt.Errorf("template parsing error: %w", err)
	}
	return in, nil
}

// Add takes one object as the engine sent it. kind is a value of the API's
// type for it: a template sees the fields of that type, and when it asks for
// one that the type has not, the object's own JSON.
func (in *Inspector) Add(raw []byte, kind any) error {
	if in.tmpl == nil {
		in.raw = append(in.raw, raw)
		return nil
	}
	var b bytes.Buffer
	typed := reflect.New(Plain(reflect.TypeOf(kind)))
	err := json.Unmarshal(raw, typed.Interface())
	if err == nil {
		err = in.tmpl.Execute(&b, typed.Elem().Interface())
	}
	if err != nil {
		b.Reset()
		if err = in.untyped(&b, raw); err != nil {
			return fmt.Errorf("template parsing error: %w", err)
		}
	}
	b.WriteByte('\n')
	_, _ = b.WriteTo(&in.out)
	return nil
}

func (in *Inspector) untyped(b *bytes.Buffer, raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return err
	}
	strict, err := in.tmpl.Clone()
	if err != nil {
		return err
	}
	return strict.Option("missingkey=error").Execute(b, v)
}

// Flush writes everything that was added.
func (in *Inspector) Flush(w io.Writer) error {
	if in.tmpl != nil {
		if in.out.Len() == 0 {
			in.out.WriteByte('\n')
		}
		_, err := in.out.WriteTo(w)
		return err
	}
	if len(in.raw) == 0 {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	list := append([]byte{'['}, bytes.Join(in.raw, []byte{','})...)
	list = append(list, ']')
	var b bytes.Buffer
	var err error
	if in.compact {
		err = json.Compact(&b, list)
	} else {
		err = json.Indent(&b, list, "", "    ")
	}
	b.WriteByte('\n')
	_, werr := b.WriteTo(w)
	return errors.Join(err, werr)
}

// Plain gives the type t with every address, port and hardware address in it
// as a string. Templates compare, test and print those: an address that is not
// there must be empty and false, and not the text of a zero value.
func Plain(t reflect.Type) reflect.Type {
	switch t {
	case reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix](), reflect.TypeFor[netip.AddrPort](),
		reflect.TypeFor[network.Port](), reflect.TypeFor[network.HardwareAddr]():
		return reflect.TypeFor[string]()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return reflect.PointerTo(Plain(t.Elem()))
	case reflect.Slice:
		return reflect.SliceOf(Plain(t.Elem()))
	case reflect.Array:
		return reflect.ArrayOf(t.Len(), Plain(t.Elem()))
	case reflect.Map:
		return reflect.MapOf(Plain(t.Key()), Plain(t.Elem()))
	case reflect.Struct:
		return plainStruct(t)
	}
	return t
}

// plainStruct leaves alone what decodes itself, and what has parts that cannot
// be rebuilt.
func plainStruct(t reflect.Type) reflect.Type {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return t
	}
	fields := make([]reflect.StructField, 0, t.NumField())
	changed := false
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			return t
		}
		p := Plain(f.Type)
		changed = changed || p != f.Type
		// A field of an embedded struct stays reachable by its own name; only
		// structs without methods may be embedded in a made type.
		if f.Anonymous && (p.Kind() != reflect.Struct || p.NumMethod() > 0) {
			return t
		}
		fields = append(fields, reflect.StructField{Name: f.Name, Type: p, Tag: f.Tag, Anonymous: f.Anonymous})
	}
	if t == reflect.TypeFor[container.NetworkSettings]() {
		fields = append(fields, reflect.VisibleFields(reflect.TypeFor[olderNetworkSettings]())...)
		for i := range fields {
			fields[i].Index, fields[i].Offset = nil, 0
		}
		changed = true
	}
	if !changed {
		return t
	}
	return reflect.StructOf(fields)
}

// olderNetworkSettings are the addresses on the default network that engines
// send up to API 1.51, and that many scripts ask for.
type olderNetworkSettings struct {
	Bridge              string `json:",omitempty"`
	EndpointID          string `json:",omitempty"`
	Gateway             string `json:",omitempty"`
	GlobalIPv6Address   string `json:",omitempty"`
	GlobalIPv6PrefixLen int    `json:",omitempty"`
	IPAddress           string `json:",omitempty"`
	IPPrefixLen         int    `json:",omitempty"`
	IPv6Gateway         string `json:",omitempty"`
	MacAddress          string `json:",omitempty"`
}
