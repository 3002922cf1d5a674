package cli

import "escale.dev/escale/internal/cli/verb"

// What commands in packages of their own have, too, goes by its old name here.
var (
	noArgs     = verb.NoArgs
	minArgs    = verb.MinArgs
	maxArgs    = verb.MaxArgs
	rangeArgs  = verb.RangeArgs
	exactArgs  = verb.ExactArgs
	suggestion = verb.Suggestion
)

type (
	filterFlag  = verb.Filter
	statusError = verb.Error
	completer   = verb.Completer
)
