package spec

import (
	"encoding/csv"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// gpus is the value of --gpus: "all", a count, or KEY=VALUE fields as CSV.
type gpus []container.DeviceRequest

func (g *gpus) Type() string   { return "gpu-request" }
func (g *gpus) String() string { return "" }

func (g *gpus) Set(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	req := container.DeviceRequest{}
	seen := map[string]bool{}
	for _, f := range fields {
		key, value, hasValue := strings.Cut(f, "=")
		if seen[key] {
			return fmt.Errorf("gpu request key '%s' can be specified only once", key)
		}
		seen[key] = true
		if !hasValue {
			key, value = "count", key
			seen["count"] = true
		}
		if err := gpuField(&req, key, value, f); err != nil {
			return err
		}
	}
	if !seen["count"] && req.DeviceIDs == nil {
		req.Count = 1
	}
	if req.Options == nil {
		req.Options = map[string]string{}
	}
	if req.Capabilities == nil {
		req.Capabilities = [][]string{{"gpu"}}
	}
	*g = append(*g, req)
	return nil
}

func gpuField(req *container.DeviceRequest, key, value, field string) (err error) {
	switch key {
	case "driver":
		req.Driver = value
	case "count":
		req.Count, err = gpuCount(value)
	case "device":
		req.DeviceIDs = strings.Split(value, ",")
	case "capabilities":
		req.Capabilities = [][]string{append(strings.Split(value, ","), "gpu")}
	case "options":
		entries, err := csv.NewReader(strings.NewReader(value)).Read()
		if err != nil {
			return fmt.Errorf("failed to read gpu options: %w", err)
		}
		req.Options = toMap(entries)
	default:
		return fmt.Errorf("unexpected key '%s' in '%s'", key, field)
	}
	return err
}

func gpuCount(s string) (int, error) {
	if s == "all" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		var num *strconv.NumError
		if errors.As(err, &num) {
			err = num.Err
		}
		return 0, fmt.Errorf(`invalid count (%s): value must be either "all" or an integer: %w`, s, err)
	}
	return n, nil
}
