package cluster

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// fill sets everything in a value, so that a copy has something to forget.
func fill(v reflect.Value, depth int) {
	if !v.CanSet() || depth > 12 {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(k, depth+1)
		fill(e, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(k, e)
	case reflect.Struct:
		switch p := v.Addr().Interface().(type) {
		case *time.Time:
			*p = time.Unix(1e9, 5).UTC()
		case *netip.Addr:
			*p = netip.MustParseAddr("10.0.0.1")
		case *netip.Prefix:
			*p = netip.MustParsePrefix("10.0.0.0/8")
		}
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Interface:
		if v.NumMethod() == 0 {
			v.Set(reflect.ValueOf(map[string]any{"a": []any{"b"}}))
		}
	default:
		if v.CanInt() {
			v.SetInt(1)
		} else if v.CanUint() {
			v.SetUint(1)
		}
	}
}

// shared finds memory that two values have in common.
func shared(a, b reflect.Value, path string) string {
	switch a.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if a.IsNil() {
			return ""
		}
		nothing := a.Kind() == reflect.Pointer && a.Type().Elem().Size() == 0
		if a.UnsafePointer() == b.UnsafePointer() && !nothing {
			return path
		}
	}
	switch a.Kind() {
	case reflect.Pointer:
		return shared(a.Elem(), b.Elem(), path)
	case reflect.Slice, reflect.Array:
		for i := range a.Len() {
			if s := shared(a.Index(i), b.Index(i), fmt.Sprint(path, "[", i, "]")); s != "" {
				return s
			}
		}
	case reflect.Map:
		for _, k := range a.MapKeys() {
			if s := shared(a.MapIndex(k), b.MapIndex(k), fmt.Sprint(path, "[", k, "]")); s != "" {
				return s
			}
		}
	case reflect.Interface:
		return shared(a.Elem(), b.Elem(), path)
	case reflect.Struct:
		for i := range a.NumField() {
			if !a.Type().Field(i).IsExported() {
				return "" // a value
			}
		}
		for i := range a.NumField() {
			if s := shared(a.Field(i), b.Field(i), path+"."+a.Type().Field(i).Name); s != "" {
				return s
			}
		}
	}
	return ""
}

// A copy is the same, down to what is empty and what is not there, and shares nothing.
func TestCopy(t *testing.T) {
	for _, k := range Kinds() {
		for _, full := range []bool{false, true} {
			o := k.New()
			if full {
				fill(reflect.ValueOf(o).Elem(), 0)
			}
			c := Copy(o)
			if !reflect.DeepEqual(o, c) {
				a, _ := json.Marshal(o)
				b, _ := json.Marshal(c)
				t.Errorf("%s, full %v:\n%s\n%s", k, full, a, b)
			}
			if where := shared(reflect.ValueOf(o), reflect.ValueOf(c), string(k)); where != "" {
				t.Errorf("%s is shared with the copy", where)
			}
		}
	}
}
