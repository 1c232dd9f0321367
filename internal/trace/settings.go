package trace

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// settings are what is asked for, by OpenTelemetry's names where the environment does.
type settings struct {
	url     string
	headers map[string]string
	timeout time.Duration // of one attempt
	gzip    bool
	tls     *tls.Config // nil: the usual
}

// settingsOf reports also whether there are to be traces.
func settingsOf(cfg Config) (s settings, on bool, err error) {
	// The variable of traces alone wins over the one of all signals.
	env := func(name string) string {
		if v := cfg.Getenv("OTEL_EXPORTER_OTLP_TRACES_" + name); v != "" {
			return v
		}
		return cfg.Getenv("OTEL_EXPORTER_OTLP_" + name)
	}
	base, path := cfg.Endpoint, "v1/traces"
	if base == "" {
		base = cfg.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
		if own := cfg.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"); own != "" {
			base, path = own, "" // as it stands
		}
	}
	exporter := cfg.Getenv("OTEL_TRACES_EXPORTER")
	disabled := strings.EqualFold(cfg.Getenv("OTEL_SDK_DISABLED"), "true") || exporter == "none"
	if base == "" || disabled {
		return s, false, nil
	}
	if exporter != "" && exporter != "otlp" {
		return s, false, fmt.Errorf("OTEL_TRACES_EXPORTER=%.50s: this program knows otlp and none", exporter)
	}
	if p := env("PROTOCOL"); p != "" && p != "http/protobuf" {
		return s, false, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%.50s: this program speaks http/protobuf; a collector listens for it on port 4318", p)
	}
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return s, false, errors.New("the collector's address is not like http://host:4318")
	}
	if s.url = u.String(); path != "" {
		s.url = u.JoinPath(path).String()
	}
	err = s.read(env)
	return s, err == nil, err
}

// read takes what says how spans are sent, but for the protocol.
func (s *settings) read(env func(name string) string) (err error) {
	if s.headers, err = parseHeaders(env("HEADERS")); err != nil {
		return fmt.Errorf("OTEL_EXPORTER_OTLP_HEADERS: %w", err)
	}
	if s.timeout, err = parseTimeout(env("TIMEOUT")); err != nil {
		return err
	}
	switch c := env("COMPRESSION"); c {
	case "", "none":
	case "gzip":
		s.gzip = true
	default:
		return fmt.Errorf("OTEL_EXPORTER_OTLP_COMPRESSION=%.50s is neither gzip nor none", c)
	}
	s.tls, err = tlsOf(env("CERTIFICATE"), env("CLIENT_CERTIFICATE"), env("CLIENT_KEY"))
	return err
}

func parseTimeout(text string) (time.Duration, error) {
	if text == "" {
		return 10 * time.Second, nil
	}
	ms, err := strconv.Atoi(text)
	if err != nil || ms <= 0 {
		return 0, fmt.Errorf("OTEL_EXPORTER_OTLP_TIMEOUT=%.50s is not a number of milliseconds", text)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// parseHeaders reads a list like a=b,c=d, with values escaped as in URLs. Errors do not repeat it: it may hold a secret.
func parseHeaders(text string) (map[string]string, error) {
	headers := map[string]string{}
	for i, pair := range strings.Split(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || name == "" || err != nil || strings.ContainsAny(name, " :\r\n\t") || strings.ContainsAny(value, "\r\n\x00") {
			return nil, fmt.Errorf("its part %d is not name=value", i+1)
		}
		headers[name] = value
	}
	return headers, nil
}

func tlsOf(ca, certificate, key string) (*tls.Config, error) {
	if ca == "" && certificate == "" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("read the collector's certificate: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", ca)
		}
	}
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for the collector: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
