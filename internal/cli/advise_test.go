package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

func TestWorkloadFlagsReachTheServer(t *testing.T) {
	flags := []string{"--origin", "trusted", "--tenancy", "multi", "--data", "health", "--gpu", "--plugin", "--needs", "linux,file-io", "--needs", "compute",
		"--start-within", "10ms", "--audit", "--orchestrator", "kubernetes", "--place", "browser", "--isolation", "process", "--accept-weaker", "a test"}
	want := &firebreakv1.Workload{Origin: "trusted", Tenancy: "multi", Data: "health", Gpu: true, Plugin: true, Needs: []string{"linux", "file-io", "compute"},
		StartWithin: durationpb.New(10 * time.Millisecond), Audit: true, Orchestrator: "kubernetes", Place: "browser"}
	s := newServer(t)
	if got := (run{s: s}).do(t, append(append([]string{"run", "-q"}, flags...), "--", "true")...); got.code != 0 {
		t.Fatalf("run: %+v", got)
	}
	if got := (run{s: s}).do(t, append([]string{"advise", "--timeout", "30s"}, flags...)...); got.code != 0 {
		t.Fatalf("advise: %+v", got)
	}
	created, asked := s.created[0], s.asked[0]
	if !proto.Equal(created.Workload, want) || created.AcceptWeaker != "a test" || created.Driver != "process" {
		t.Errorf("created %v", created)
	}
	if !proto.Equal(asked.Workload, want) || asked.AcceptWeaker != "a test" || asked.Driver != "process" || asked.TimeLimit.AsDuration() != 30*time.Second {
		t.Errorf("asked %v", asked)
	}
}

func TestMistypedFacts(t *testing.T) {
	for line, want := range map[string]string{
		"--origin trsted":         "did you mean trusted?",
		"--origin=":               "choose one of none, trusted, model, untrusted",
		"--tenancy 3":             "choose one of single, multi",
		"--data secret":           "choose one of public, internal",
		"--needs linx":            `"linx" is none of linux, network`,
		"--start-within soon":     "write it like",
		"--accept-weaker because": "name it: --isolation NAME",
		"--isolation gvizor":      "did you mean gvisor?",
	} {
		s := newServer(t)
		for _, command := range []string{"run", "advise"} {
			args := append([]string{command}, strings.Fields(line)...)
			if command == "run" {
				args = append(args, "--", "true")
			}
			run{s: s}.do(t, args...).wantError(t, 125, command+": ", want)
		}
		if len(s.created)+len(s.asked) > 0 {
			t.Errorf("%s: the server was asked", line)
		}
	}
}

func TestAdvisePrints(t *testing.T) {
	s := newServer(t)
	got := run{s: s}.do(t, "advise")
	for _, want := range []string{"chosen        gvisor (user-kernel)\n", "origin model was taken, as nobody says otherwise", "acceptable    gvisor, kata\n",
		"not enforced  brokered-secrets\n", "model-written  Nobody has read it.\n"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in\n%s", want, got.stdout)
		}
	}
	if got.code != 0 || got.stderr != "" || strings.Contains(got.stdout, "A wall.") || strings.Contains(got.stdout, "\x1b") {
		t.Errorf("%+v", got)
	}
	got = run{s: s}.do(t, "advise", "--explain")
	for _, want := range []string{"gpu            -      when gpu\n", "model-written  fired  Nobody has read it.\n",
		"brokered-secrets  not-enforced-yet  It brokers none. (rule model-written)\n",
		"container  shared-kernel    Nobody has read it. (rule model-written)\n", "kata       virtual-machine  no driver for it. To have it: install it.\n"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in\n%s", want, got.stdout)
		}
	}
	s.decision = refusedDecision()
	got = run{s: s}.do(t, "advise", "--tenancy", "multi")
	if got.code != 1 || !strings.HasPrefix(got.stdout, "refused     nothing here gives that\nto mend it  use another host\n") || got.stderr != "" {
		t.Errorf("refused: %+v", got)
	}
	s.decision.Override = &firebreakv1.Decision_Override{Driver: "process", Why: "a test", Rules: []string{"some-wall"}}
	s.decision.Refusal, s.decision.Driver = nil, "process"
	if got = (run{s: s}).do(t, "advise"); got.code != 0 || !strings.Contains(got.stdout, "by rule some-wall\nbecause       a test\n") {
		t.Errorf("override: %+v", got)
	}
}

func TestAdviseJSONIsTheDecision(t *testing.T) {
	s := newServer(t)
	first := run{s: s}.do(t, "advise", "--json")
	if again := (run{s: s}).do(t, "advise", "--json"); again.stdout != first.stdout {
		t.Errorf("two answers to one question:\n%s%s", first.stdout, again.stdout)
	}
	var d struct {
		Driver, Boundary string
		Duties           []struct{ Duty, Status string }
		Trace            []struct {
			Rule  string
			Fired bool
		}
	}
	if err := json.Unmarshal([]byte(first.stdout), &d); err != nil || d.Driver != "gvisor" || d.Duties[1].Status != "not-enforced-yet" || !d.Trace[1].Fired {
		t.Errorf("%+v, %v", d, err)
	}
	s.decision = refusedDecision()
	if got := (run{s: s}).do(t, "advise", "--json"); got.code != 1 || !strings.Contains(got.stdout, `"text": "nothing here gives that"`) {
		t.Errorf("refused: %+v", got)
	}
}

func TestPolicyOfAFileIsNotForAnotherServer(t *testing.T) {
	s := newServer(t)
	run{s: s}.do(t, "--server", s.http.URL, "--policy", "mine.yaml", "run", "--", "true").wantError(t, 125, "another server decides by its own policy")
	run{s: s, env: map[string]string{"FIREBREAK_SERVER": s.http.URL, "FIREBREAK_POLICY": "mine.yaml"}}.do(t, "advise").wantError(t, 125, "FIREBREAK_POLICY")
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const extension = `name: mine
extends: default
rules:
  - id: no-gpu
    when: gpu
    boundaries: [virtual-machine]
    reason: It is mine.
    source: a test
tests:
  - name: a GPU
    workload: {gpu: true}
    host: {gvisor: healthy}
    expect: {refused: true}
`

func TestPolicyCommands(t *testing.T) {
	s := newServer(t)
	good := writeFile(t, "good.yaml", extension)
	bad := writeFile(t, "bad.yaml", strings.Replace(extension, "when: gpu", "when: gpo", 1))
	wrong := writeFile(t, "wrong.yaml", strings.Replace(extension, "refused: true", "driver: gvisor", 1))
	s.policy = &firebreakv1.GetPolicyResponse{Name: "mine", Version: "1", Yaml: extension, ExtendsYaml: "name: default\n", Rules: []*firebreakv1.Rule{{Id: "no-gpu"}}}

	run{s: s}.do(t, "policy", "check", bad).wantError(t, 125, bad+":5: rule no-gpu: ", "gpo")
	run{s: s}.do(t, "policy", "test", bad).wantError(t, 125, bad+":5: rule no-gpu: ")
	run{s: s}.do(t, "policy", "check", "no-such").wantError(t, 125, "no-such")
	run{s: s}.do(t, "policy", "chekc").wantError(t, 125, "did you mean check?")
	if got := (run{s: s}).do(t, "policy", "check", good); got.code != 0 || !strings.HasPrefix(got.stdout, good+": policy mine, version ") {
		t.Errorf("check: %+v", got)
	}
	for _, args := range [][]string{{"policy", "test", good}, {"policy", "test"}} {
		if got := (run{s: s}).do(t, args...); got.code != 0 || !strings.Contains(got.stdout, "ok    test: a GPU\n") || !strings.HasSuffix(got.stdout, ", all as expected\n") {
			t.Errorf("%v: %+v", args, got)
		}
	}
	if got := (run{s: s}).do(t, "policy", "test", wrong); got.code != 1 || !strings.Contains(got.stdout, "FAIL  test: a GPU ("+wrong+":10): it is refused") ||
		!strings.Contains(got.stderr, "1 of ") {
		t.Errorf("a case that fails: %+v", got)
	}
	show := "# policy mine, version 1, 1 rules\n" + extension + "\n---\n# It extends this one.\nname: default\n"
	run{s: s}.do(t, "policy", "show").want(t, 0, show, "")
	if got := (run{s: s}).do(t, "policy", "show", "--json"); got.code != 0 || !json.Valid([]byte(got.stdout)) || !strings.Contains(got.stdout, `"id": "no-gpu"`) {
		t.Errorf("show --json: %+v", got)
	}
}

func TestDoctor(t *testing.T) {
	s := newServer(t)
	s.report = &firebreakv1.Report{
		Drivers: []*firebreakv1.DriverReport{
			{Name: "gvisor", Version: "1", Boundary: "user-kernel", Healthy: true, TriedAt: timestamppb.Now(), Took: durationpb.New(120 * time.Millisecond)},
			{Name: "container", Boundary: "shared-kernel", Cached: true, TriedAt: timestamppb.New(time.Now().Add(-time.Hour)),
				Problems: []*firebreakv1.Problem{{Text: "no runtime", Mend: "apt-get install crun"}}},
		},
		Host: &firebreakv1.Host{Kernel: "6.1", Arch: "x86_64", Cpus: 2, MemoryBytes: 8 << 30, MemoryFreeBytes: 4 << 30, Cgroups: "v2", UserNamespaces: true,
			Kvm: &firebreakv1.Host_KVM{Present: true, Detail: "the guest stopped", Mend: "use bare metal"}},
		Cases: []*firebreakv1.CommonCase{{Name: "code of a model", Decision: decided()}},
	}
	got := run{s: s}.do(t, "doctor")
	for _, want := range []string{"gvisor     user-kernel    healthy     now, in 120 ms", "container  shared-kernel  not usable  60m ago", "container  no runtime; to mend it: apt-get install crun",
		"present, not usable: the guest stopped; to mend it: use bare metal", "4 GiB of 8 GiB free", "code of a model  gvisor (user-kernel)"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in\n%s", want, got.stdout)
		}
	}
	if got.code != 0 || got.stderr != "" {
		t.Errorf("%+v", got)
	}
	s.report.Cases = append(s.report.Cases, &firebreakv1.CommonCase{Name: "trusted code", Decision: refusedDecision()})
	if got := (run{s: s}).do(t, "doctor"); got.code != 1 || !strings.Contains(got.stdout, "trusted code     not served: nothing here gives that; to mend it: use another host") {
		t.Errorf("a case that is not served: %+v", got)
	}
	if got := (run{s: s}).do(t, "doctor", "--json"); got.code != 1 || !json.Valid([]byte(got.stdout)) || !strings.Contains(got.stdout, `"kernel": "6.1"`) {
		t.Errorf("json: %+v", got)
	}
}

func TestWrap(t *testing.T) {
	text := strings.Repeat("word ", 20) + strings.Repeat("x", 50)
	for _, width := range []int{0, 20, 33, 1000} {
		lines := wrap(text, width)
		if strings.Join(strings.Fields(strings.Join(lines, " ")), " ") != text {
			t.Errorf("width %d loses words: %q", width, lines)
		}
		for _, line := range lines {
			if width >= 20 && len(line) > width && strings.Contains(line, " ") {
				t.Errorf("width %d: %q", width, line)
			}
		}
	}
}

func TestCompletionOfFacts(t *testing.T) {
	for line, want := range map[string]string{"run --origin": "untrusted\n", "advise --data": "regulated\n", "run --needs": "file-io\n", "advise --place": "browser\n",
		"run --isolation": "gvisor\n"} {
		got := run{s: newServer(t)}.do(t, append([]string{"__complete"}, append(strings.Fields(line), "")...)...)
		if got.code != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("%s: %+v", line, got)
		}
	}
}
