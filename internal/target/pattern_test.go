package target

import "testing"

// The expectations are those of regcomp(REG_EXTENDED) without REG_NEWLINE, and
// of pgrep -x, which puts ^( and )$ around the expression.
func TestPatternMatchesAsRegcompDoes(t *testing.T) {
	tests := []struct {
		expr  string
		exact bool
		text  string
		want  bool
	}{
		{"smtp", false, "smtpserver", true},
		{"server", false, "smtpserver", true},
		{"SMTP", false, "smtpserver", false},
		{"smtp", true, "smtpserver", false},
		{"smtpserver", true, "smtpserver", true},
		{"^server", false, "smtpserver", false},
		{"server$", false, "smtpserver", true},
		{"^$", false, "x", false},
		{"router|smtpserver", true, "smtpserver", true},
		{"a|ab", true, "ab", true}, // the longest alternative, not the first
		{"(a|ab)(c|bcd)", true, "abcd", true},
		{"[[:alpha:]]+", true, "router", true},
		{"[[:alpha:]]+", true, "router2", false},
		{"kworker/[[:digit:]]", false, "kworker/3", true},
		{"a.c", false, "abc", true},
		{`a\.c`, false, "abc", false},
		{"a{2,3}", true, "aaa", true},
		{"a{2,3}", true, "aaaa", false},

		// Where the dialects differ.
		{"a{,2}", true, "aa", true},
		{"a{,2}", true, "aaa", false},
		{`[\.]`, true, `\`, true}, // a backslash in brackets is itself
		{`[a\]`, true, `\`, true},
		{`[^\]`, true, `\`, false},
		{"[]a]", true, "]", true},
		{"[^]a]", true, "]", false},
		{"[[.p.]]ostgres", true, "postgres", true},
		{"[[=a=]]", true, "a", true},
		{"[a-]", true, "-", true},
		{"[a^]", true, "^", true},
		{"[a[]", true, "[", true},
		{"[[:alpha:]_-]+", true, "a_-", true},
		{`a\{1}`, true, "a{1}", true},

		// A name of two lines is one text: it is not one of its lines.
		{"^smtpserver$", false, "x\nsmtpserver", false},
		{"smtpserver", true, "smtpserver\nx", false},
		{"a.b", true, "a\nb", true},
		{"a[^x]b", true, "a\nb", true},

		{"a.b", true, "a\xffb", true}, // a name need not be UTF-8
		{"é", false, "café", true},
	}
	for _, tt := range tests {
		p, err := compilePattern(tt.expr, tt.exact)
		if err != nil {
			t.Errorf("%q: %v", tt.expr, err)
			continue
		}
		if got := p.match(tt.text); got != tt.want {
			t.Errorf("%q (exact %v) matches %q: %v, want %v", tt.expr, tt.exact, tt.text, got, tt.want)
		}
	}
}

func TestPatternRefusesWhatIsNoERE(t *testing.T) {
	for _, expr := range []string{"(", "a)|(b", "[", "[[:nope:]]", "*a", `\d`, "(?i)a", "a{2,1}", `\`,
		`\<smtp`, `smtp\>`, "\\`a", `a\'`, "^*a", "^+", "[[.ab.]]", "[[:alpha:]", "[a", `\x62`, `a\n`, `\t`, `(a)\1`, `\w`, `\b`} {
		for _, exact := range []bool{false, true} {
			if _, err := compilePattern(expr, exact); err == nil {
				t.Errorf("%q (exact %v) compiles", expr, exact)
			}
		}
	}
}

func TestMinLen(t *testing.T) {
	tests := []struct {
		expr string
		want int
	}{
		{"smtpserver", 10},
		{"^smtpserver$", 10},
		{"smtp.*server", 10},
		{"a|bcd", 1},
		{"ab|cd|ef", 2},
		{"(abc)?d", 1},
		{"a+b*", 1},
		{"[a-f]{4}x", 5},
		{"smtpserver-for-incoming", 23},
		{"smtpserver-for-incoming|b", 1},
		{"", 0},
	}
	for _, tt := range tests {
		p, err := compilePattern(tt.expr, false)
		if err != nil {
			t.Fatal(err)
		}
		if p.minLen != tt.want {
			t.Errorf("%q needs %d bytes, want %d", tt.expr, p.minLen, tt.want)
		}
	}
}
