package config

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting is one thing that can be said, as one text, in a flag, the environment or the file.
type Setting struct {
	Key   string // its place in the file: "tls.listen"
	Usage string // with the kind of its value in backquotes
	Bool  bool

	set func(c *Config, text string) error
	get func(c *Config) string
}

// Flag returns the flag's name, without hyphens before it. A section's mode has the section's name.
func (s Setting) Flag() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(strings.TrimSuffix(s.Key, modeKey))
}

// Variable returns the name of the environment variable.
func (s Setting) Variable() string {
	return "FIREBREAK_" + strings.ToUpper(strings.ReplaceAll(s.Flag(), "-", "_"))
}

const modeKey = ".mode"

// Text returns what c says of it, as it would be written.
func (s Setting) Text(c Config) string { return s.get(&c) }

// Settings returns all settings but the pools, which only the file can say.
func Settings() []Setting {
	return []Setting{
		text("listen", "`address` of the plain port, for all protocols; empty: none", func(c *Config) *string { return &c.Listen }, checkAddress),
		text("socket", "`path` of a unix socket, where this user and root need no key", func(c *Config) *string { return &c.Socket }, nil),
		text("domain", "`name` below which sandboxes have host names: 8080-ID.NAME, perhaps with the port of a proxy", func(c *Config) *string { return &c.Domain }, checkDomain),
		text("tls.mode", "`mode` of the encrypted port: auto (certificates of an authority of this server), files or off", func(c *Config) *string { return &c.TLS.Mode }, oneOf("", TLSAuto, TLSFiles, TLSOff)),
		text("tls.listen", "`address` of the encrypted port", func(c *Config) *string { return &c.TLS.Listen }, checkAddress),
		text("tls.cert", "`file` of the certificate, with its chain; read again when it changes", func(c *Config) *string { return &c.TLS.Cert }, nil),
		text("tls.key", "`file` of the certificate's key", func(c *Config) *string { return &c.TLS.Key }, nil),
		text("state_dir", "`directory` of sandboxes, templates and keys", func(c *Config) *string { return &c.StateDir }, nil),
		text("policy", "`file` of rules that replace or extend the built-in policy", func(c *Config) *string { return &c.Policy }, nil),
		level("log.level", "`level` from which on is logged: debug, info, warn or error"),
		text("log.format", "`format` of the log: text or json", func(c *Config) *string { return &c.Log.Format }, oneOf("text", "json")),
		text("otlp", "`URL` of an OpenTelemetry collector for traces", func(c *Config) *string { return &c.OTLP }, nil),
		pairs("aliases", "`names` of templates that stand for others where there is no such template: base=host,…"),
		duration("max_timeout", "the longest `time` that a tenant may ask for at once; 0: any", 0, func(c *Config) *time.Duration { return &c.MaxTimeout }),
		text("envd_version", "`version` that is told to E2B's clients", func(c *Config) *string { return &c.EnvdVersion }, checkVersion),
		number("max_connections", "the greatest `number` of connections at once", func(c *Config) *int { return &c.MaxConnections }),
		duration("grace", "`time` for requests under way when the server is told to end", time.Hour, func(c *Config) *time.Duration { return &c.Grace }),
		boolean("kill_on_exit", "end all sandboxes with the server", func(c *Config) *bool { return &c.KillOnExit }),
		boolean("metrics", "serve Prometheus metrics at /metrics", func(c *Config) *bool { return &c.Metrics }),
		boolean("webhooks_near", "let webhooks go to this host and its own networks", func(c *Config) *bool { return &c.WebhooksNear }),
		list("cors_origins", "`origins` of web pages that may call the API, with commas between; * is any", func(c *Config) *[]string { return &c.CORSOrigins }, checkOrigin),
	}
}

func text(key, usage string, field func(*Config) *string, check func(string) error) Setting {
	return Setting{Key: key, Usage: usage,
		get: func(c *Config) string { return *field(c) },
		set: func(c *Config, text string) error {
			if strings.ContainsAny(text, "\x00\n") {
				return fmt.Errorf("%.40q has a line break in it", text)
			}
			if check != nil {
				if err := check(text); err != nil {
					return err
				}
			}
			*field(c) = text
			return nil
		}}
}

func oneOf(words ...string) func(string) error {
	return func(text string) error {
		if slices.Contains(words, text) {
			return nil
		}
		words := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" })
		return fmt.Errorf("%.40q is none of %s", text, strings.Join(words, ", "))
	}
}

func checkVersion(text string) error {
	if !semver().MatchString(text) {
		return fmt.Errorf("%.40q is no version as 0.6.13 is", text)
	}
	return nil
}

func checkOrigin(text string) error {
	scheme, host, found := strings.Cut(text, "://")
	if text == "*" || found && (scheme == "http" || scheme == "https") && host != "" && !strings.ContainsAny(host, "/?# ") {
		return nil
	}
	return fmt.Errorf("%.80q is no origin as https://example.com is", text)
}

func level(key, usage string) Setting {
	return Setting{Key: key, Usage: usage,
		get: func(c *Config) string { return strings.ToLower(c.Log.Level.String()) },
		set: func(c *Config, text string) error {
			for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
				if strings.ToLower(l.String()) == text {
					c.Log.Level = l
					return nil
				}
			}
			return fmt.Errorf("%.40q is none of debug, info, warn, error", text)
		}}
}

func number(key, usage string, field func(*Config) *int) Setting {
	return Setting{Key: key, Usage: usage,
		get: func(c *Config) string { return strconv.Itoa(*field(c)) },
		set: func(c *Config, text string) error {
			n, err := strconv.ParseUint(text, 10, 31)
			if err != nil || n == 0 {
				return fmt.Errorf("%.40q is no whole number from 1 on", text)
			}
			*field(c) = int(n)
			return nil
		}}
}

// duration is a time from 0 to most, if that is not 0.
func duration(key, usage string, most time.Duration, field func(*Config) *time.Duration) Setting {
	return Setting{Key: key, Usage: usage,
		get: func(c *Config) string { return field(c).String() },
		set: func(c *Config, text string) error {
			var d time.Duration
			if zero, err := strconv.ParseFloat(strings.TrimSuffix(text, "s"), 64); err != nil || zero != 0 {
				if d, err = ParseDuration(text); err != nil {
					return fmt.Errorf("%.40q: %w", text, err)
				}
			}
			if most > 0 && d > most {
				return fmt.Errorf("%s is more than %s", d, most)
			}
			*field(c) = d
			return nil
		}}
}

func boolean(key, usage string, field func(*Config) *bool) Setting {
	return Setting{Key: key, Usage: usage, Bool: true,
		get: func(c *Config) string { return strconv.FormatBool(*field(c)) },
		set: func(c *Config, text string) error {
			if text != "true" && text != "false" {
				return fmt.Errorf("%.40q is neither true nor false", text)
			}
			*field(c) = text == "true"
			return nil
		}}
}

// split cuts at commas; nothing is no item.
func split(text string) []string {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	items := strings.Split(text, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}

func list(key, usage string, field func(*Config) *[]string, check func(string) error) Setting {
	return Setting{Key: key, Usage: usage,
		get: func(c *Config) string { return strings.Join(*field(c), ",") },
		set: func(c *Config, text string) error {
			items := split(text)
			for _, item := range items {
				if err := check(item); err != nil {
					return err
				}
			}
			*field(c) = items
			return nil
		}}
}

func pairs(key, usage string) Setting {
	return Setting{Key: key, Usage: usage,
		get: func(c *Config) string {
			var all []string
			for _, name := range slices.Sorted(maps.Keys(c.Aliases)) {
				all = append(all, name+"="+c.Aliases[name])
			}
			return strings.Join(all, ",")
		},
		set: func(c *Config, text string) error {
			aliases := map[string]string{}
			for _, pair := range split(text) {
				name, target, found := strings.Cut(pair, "=")
				if !found || name == "" || target == "" || name == target {
					return fmt.Errorf("%.80q is not NAME=OTHER", pair)
				}
				if _, twice := aliases[name]; twice {
					return fmt.Errorf("%.80q stands twice", name)
				}
				aliases[name] = target
			}
			c.Aliases = aliases
			return nil
		}}
}
