package target

import (
	"errors"
	"fmt"
	"strings"
)

// translate turns a POSIX extended regular expression, as regcomp(3) reads it,
// into what Go's parser takes for the same. What would silently mean something
// else there is either put in other words or refused.
func translate(expr string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(expr); {
		switch c := expr[i]; {
		case c == '\\':
			if i+1 == len(expr) {
				return "", errors.New("trailing backslash")
			}
			if c := expr[i+1]; strings.IndexByte("<>`'wWsSbB", c) >= 0 {
				return "", fmt.Errorf("\\%c is an extension of GNU's that is not supported", c)
			} else if isAlphanumeric(c) {
				return "", fmt.Errorf("\\%c means nothing in an extended regular expression: write %c", c, c)
			}
			out.WriteString(expr[i : i+2])
			i += 2
		case c == '[':
			n, err := translateBracket(&out, expr[i:])
			if err != nil {
				return "", err
			}
			i += n
		case c == '^' && i+1 < len(expr) && strings.IndexByte("*+?{", expr[i+1]) >= 0:
			return "", fmt.Errorf("nothing before %q to repeat", expr[i+1])
		case c == '{' && strings.HasPrefix(expr[i:], "{,"):
			out.WriteString("{0,")
			i += 2
		default:
			out.WriteByte(c)
			i++
		}
	}
	return out.String(), nil
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// translateBracket writes the bracket expression at the start of expr and
// returns its length. A backslash in it is an ordinary character.
func translateBracket(out *strings.Builder, expr string) (int, error) {
	out.WriteByte('[')
	i := 1
	if strings.HasPrefix(expr[i:], "^") {
		out.WriteByte('^')
		i++
	}
	for first := true; i < len(expr); first = false {
		switch rest := expr[i:]; {
		case rest[0] == ']' && !first:
			out.WriteByte(']')
			return i + 1, nil
		case strings.HasPrefix(rest, "[:"):
			end := strings.Index(rest, ":]")
			if end < 0 {
				return 0, errors.New("[: without :]")
			}
			out.WriteString(rest[:end+2])
			i += end + 2
		case strings.HasPrefix(rest, "[."), strings.HasPrefix(rest, "[="):
			if len(rest) < 5 || rest[3] != rest[1] || rest[4] != ']' {
				return 0, fmt.Errorf("a collating element of more than one character (%.2s) is not supported", rest)
			}
			writeLiteral(out, rest[2])
			i += 5
		default:
			if rest[0] == '-' {
				out.WriteByte('-')
			} else {
				writeLiteral(out, rest[0])
			}
			i++
		}
	}
	return 0, errors.New("[ without ]")
}

// writeLiteral writes a character of a bracket expression so that it stands for
// itself.
func writeLiteral(out *strings.Builder, c byte) {
	if strings.IndexByte(`\[]^-`, c) >= 0 {
		out.WriteByte('\\')
	}
	out.WriteByte(c)
}
