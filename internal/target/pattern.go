package target

import (
	"regexp"
	"regexp/syntax"
)

// pattern is a POSIX extended regular expression that is searched in a name.
type pattern struct {
	re     *regexp.Regexp
	minLen int // bytes of the shortest text that it can match
	// The same of the alternative for which that is longest: where process names are
	// shorter, it matches nothing.
	longest int
}

// ere makes Go read an expression as regcomp(REG_EXTENDED) does.
// regexp.CompilePOSIX alone would not: there ^ and $ also match at line breaks
// and a dot or [^x] does not match one, so that a process could choose a name
// of two lines and be taken for somebody else.
const ere = syntax.POSIX | syntax.OneLine | syntax.DotNL | syntax.ClassNL

func compilePattern(expr string, exact bool) (pattern, error) {
	expr, err := translate(expr)
	if err != nil {
		return pattern{}, err
	}
	// First on its own, so that an expression like "a)|(b" cannot become
	// valid by being wrapped.
	tree, err := syntax.Parse(expr, ere)
	if err != nil {
		return pattern{}, err
	}
	if exact {
		if tree, err = syntax.Parse("^("+expr+")$", ere); err != nil {
			return pattern{}, err
		}
	}
	// The tree prints itself as the same expression in Go's own syntax.
	re, err := regexp.Compile(tree.String())
	if err != nil {
		return pattern{}, err
	}
	re.Longest()
	return pattern{re, shortest(tree, false), shortest(tree, true)}, nil
}

// impossible says what of the pattern matches no process name, for that is longer than
// names are: "" for nothing.
func (p pattern) impossible() string {
	switch {
	case p.minLen > CommLen:
		return "it"
	case p.longest > CommLen:
		return "an alternative of it"
	}
	return ""
}

func (p pattern) match(s string) bool { return p.re.MatchString(s) }

// shortest is the length in bytes of the shortest text that re can match; where
// longest is set, that of the alternative for which it is longest. Runes count as one
// byte each, since an invalid byte matches as one.
func shortest(re *syntax.Regexp, longest bool) int {
	switch re.Op {
	case syntax.OpLiteral:
		return len(string(re.Rune))
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return 1
	case syntax.OpCapture, syntax.OpPlus:
		return shortest(re.Sub[0], longest)
	case syntax.OpRepeat:
		return re.Min * shortest(re.Sub[0], longest)
	case syntax.OpConcat:
		n := 0
		for _, sub := range re.Sub {
			n += shortest(sub, longest)
		}
		return n
	case syntax.OpAlternate:
		n := shortest(re.Sub[0], longest)
		for _, sub := range re.Sub[1:] {
			if m := shortest(sub, longest); m > n == longest {
				n = m
			}
		}
		return n
	}
	return 0
}
