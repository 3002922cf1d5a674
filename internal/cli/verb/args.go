package verb

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// NoArgs accepts no argument.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return fmt.Errorf("%s: unknown command: %s %s%s\n\nUsage:  %s\n\nRun '%s --help' for more information",
			cmd.Root().Name(), cmd.CommandPath(), args[0], Suggestion(cmd, args[0]), cmd.UseLine(), cmd.CommandPath())
	}
	return fmt.Errorf("%s: '%s' accepts no arguments\n\nUsage:  %s\n\nRun '%[2]s --help' for more information",
		cmd.Root().Name(), cmd.CommandPath(), cmd.UseLine())
}

func argsError(cmd *cobra.Command, wants string, n int) error {
	noun := "arguments"
	if n == 1 {
		noun = "argument"
	}
	look := "Run"
	if strings.HasSuffix(wants, "least") {
		look = "See" // as the stock client says it
	}
	return fmt.Errorf("%s: '%s' %s %d %s\n\nUsage:  %s\n\n%s '%[2]s --help' for more information",
		cmd.Root().Name(), cmd.CommandPath(), wants, n, noun, cmd.UseLine(), look)
}

// MinArgs accepts n arguments and more.
func MinArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return argsError(cmd, "requires at least", n)
		}
		return nil
	}
}

// MaxArgs accepts up to n arguments.
func MaxArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return argsError(cmd, "requires at most", n)
		}
		return nil
	}
}

// RangeArgs accepts from least to most arguments.
func RangeArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return argsError(cmd, fmt.Sprintf("requires at least %d and at most", least), most)
		}
		return nil
	}
}

// ExactArgs accepts n arguments.
func ExactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return argsError(cmd, "requires", n)
		}
		return nil
	}
}

// Suggestion names the command that was perhaps meant: one of at most a third
// of its letters wrong.
func Suggestion(cmd *cobra.Command, word string) string {
	cmd.SuggestionsMinimumDistance = len(word) / 3
	if s := cmd.SuggestionsFor(word); len(s) > 0 && len(word) > 2 {
		return fmt.Sprintf("\nDid you mean '%s %s'?", cmd.CommandPath(), s[0])
	}
	return ""
}
