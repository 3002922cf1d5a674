package cluster

import "reflect"

// Copy is an object that may be changed: nothing that can be is shared with the other.
func Copy[T Object](o T) T {
	return clone(reflect.ValueOf(o)).Interface().(T)
}

// clone copies what pointers, lists and maps lead to. A struct that hides some of its
// fields (a time, an address) is a value, and taken as it is.
func clone(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(clone(v.Elem()))
		return out
	case reflect.Interface:
		if v.IsNil() {
			return v
		}
		out := reflect.New(v.Type()).Elem()
		out.Set(clone(v.Elem()))
		return out
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		if flat(v.Type().Elem().Kind()) {
			reflect.Copy(out, v)
			return out
		}
		for i := range v.Len() {
			out.Index(i).Set(clone(v.Index(i)))
		}
		return out
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		out := reflect.MakeMapWithSize(v.Type(), v.Len())
		for i := v.MapRange(); i.Next(); {
			out.SetMapIndex(i.Key(), clone(i.Value()))
		}
		return out
	case reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				return out
			}
		}
		for i := range v.NumField() {
			if f := v.Field(i); !flat(f.Kind()) {
				out.Field(i).Set(clone(f))
			}
		}
		return out
	case reflect.Array:
		out := reflect.New(v.Type()).Elem()
		for i := range v.Len() {
			out.Index(i).Set(clone(v.Index(i)))
		}
		return out
	}
	return v
}

// flat tells whether values of a kind share nothing.
func flat(k reflect.Kind) bool { return k <= reflect.Complex128 || k == reflect.String }
