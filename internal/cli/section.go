package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// cell is one field of a section.
type cell struct {
	text  string
	color color
}

func cells(texts ...string) []cell {
	row := make([]cell, len(texts))
	for i, text := range texts {
		row[i] = cell{text: text}
	}
	return row
}

// section prints rows under a title, aligned, with the last column wrapped: it holds sentences.
func (a *app) section(title string, rows [][]cell) error {
	if len(rows) == 0 {
		return nil
	}
	var b strings.Builder
	if title != "" {
		b.WriteString("\n" + a.paint(a.out, bold, title) + "\n")
	}
	widths := map[int]int{}
	for _, row := range rows {
		for i, c := range row[:len(row)-1] {
			widths[i] = max(widths[i], utf8.RuneCountInString(oneLine(c.text)))
		}
	}
	for _, row := range rows {
		indent := 0
		for i, c := range row[:len(row)-1] {
			text := oneLine(c.text)
			b.WriteString(a.paint(a.out, c.color, text) + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
			indent += widths[i] + 2
		}
		last := row[len(row)-1]
		for i, line := range wrap(oneLine(last.text), a.width()-indent) {
			if i > 0 {
				b.WriteString(strings.Repeat(" ", indent))
			}
			b.WriteString(a.paint(a.out, last.color, line) + "\n")
		}
	}
	_, err := io.WriteString(a.out, strings.ReplaceAll(b.String(), " \n", "\n"))
	return err
}

// paint colours text where w shows colours.
func (a *app) paint(w io.Writer, c color, text string) string {
	if c == plain || text == "" || !a.colored(w) {
		return text
	}
	return string(c) + text + "\x1b[0m"
}

// width is how many columns standard output has; a file gets lines that fit most screens.
func (a *app) width() int {
	if cols, _, err := term.GetSize(int(a.out.Fd())); err == nil && cols > 0 {
		return cols
	}
	return 120
}

// wrap breaks text between words; a word longer than the width stays whole, and so does everything if there is no room.
func wrap(text string, width int) []string {
	if width < 20 {
		return []string{text}
	}
	var lines []string
	line, length := "", 0
	for word := range strings.FieldsSeq(text) {
		n := utf8.RuneCountInString(word)
		if length > 0 && length+1+n > width {
			lines, line, length = append(lines, line), "", 0
		}
		if length > 0 {
			line, length = line+" ", length+1
		}
		line, length = line+word, length+n
	}
	return append(lines, line)
}

// joined is a list for a sentence.
func joined(list []string, otherwise string) string {
	if len(list) == 0 {
		return otherwise
	}
	return strings.Join(list, ", ")
}

func yesNo(b bool) string { return map[bool]string{true: "yes", false: "no"}[b] }

func percent(part, whole int64) string {
	if whole <= 0 {
		return formatSize(part)
	}
	return fmt.Sprintf("%s of %s free", formatSize(part), formatSize(whole))
}
