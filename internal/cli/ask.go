package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// question is one fact asked for on a terminal. Enter takes the careful answer, which is to say nothing.
type question struct {
	text, words, careful string
	answer               func(w *firebreakv1.Workload, text string) error
}

func questions() []question {
	var list []question
	for _, f := range facts() {
		list = append(list, question{f.question, strings.Join(f.words, ", "), f.careful(), func(w *firebreakv1.Workload, text string) error {
			word := wordFlag{fact: f}
			if err := word.Set(text); err != nil {
				return err
			}
			setFact(w, f.flag, text)
			return nil
		}})
	}
	yes := func(set func(w *firebreakv1.Workload, b bool)) func(*firebreakv1.Workload, string) error {
		return func(w *firebreakv1.Workload, text string) error {
			switch strings.ToLower(text) {
			case "y", "yes", "n", "no":
				set(w, strings.HasPrefix(strings.ToLower(text), "y"))
				return nil
			}
			return errors.New("answer yes or no")
		}
	}
	return append(list,
		question{"Is it a module that can do only what it is handed?", "yes, no", "no", yes(func(w *firebreakv1.Workload, b bool) { w.Plugin = b })},
		question{"Does it need a GPU?", "yes, no", "no", yes(func(w *firebreakv1.Workload, b bool) { w.Gpu = b })},
		question{"Must an auditor be shown how it is isolated?", "yes, no", "no", yes(func(w *firebreakv1.Workload, b bool) { w.Audit = b })},
		question{"What does it need, or do much of?", strings.Join(firebreak.NeedWords(), ", "), "linux, unless it is a module", answerNeeds},
		question{"Within what time must it start?", "like 10ms or 2s", "no bound", func(w *firebreakv1.Workload, text string) error {
			var d durationFlag
			if err := d.Set(text); err != nil {
				return err
			}
			w.StartWithin = durationpb.New(time.Duration(d))
			return nil
		}})
}

func answerNeeds(w *firebreakv1.Workload, text string) error {
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
	for _, word := range words {
		if !slices.Contains(firebreak.NeedWords(), word) {
			return fmt.Errorf("%q is none of them", word)
		}
	}
	w.Needs = words
	return nil
}

// askWorkload fills w by asking on the terminal. It ends with the answers, or with ctx.
func (a *app) askWorkload(ctx context.Context, w *firebreakv1.Workload) error {
	in, err := newInputReader(a.in)
	if err != nil {
		return err
	}
	defer in.Close()
	stop := context.AfterFunc(ctx, in.Stop)
	defer stop()
	lines := bufio.NewReader(io.LimitReader(in, 64<<10))
	fmt.Fprintln(a.errOut, "Enter takes the answer in brackets.")
	for _, q := range questions() {
		for {
			fmt.Fprintf(a.errOut, "%s %s [%s] ", a.paint(a.errOut, bold, q.text), q.words, q.careful)
			line, err := lines.ReadString('\n')
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				fmt.Fprintln(a.errOut)
				return invalid("", errors.New("the answers ended before the questions"), "say it with flags: see firebreak advise --help")
			}
			if line = strings.TrimSpace(line); line == "" {
				break
			}
			if err = q.answer(w, line); err == nil {
				break
			}
			fmt.Fprintln(a.errOut, oneLine(errorText(err)))
		}
	}
	_, err = fmt.Fprintln(a.errOut)
	return err
}
