package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/firebreak-dev/firebreak"
)

const (
	maxMetrics     = 16 << 10 // of the answer
	metricsTimeout = 2 * time.Second
)

// Metrics is what the agent sees from inside, in bytes. Where a sandbox shares what it looks at with its host, such as
// the file system, these are the host's.
type Metrics struct {
	MemTotal  int64
	MemUsed   int64
	MemCache  int64
	DiskUsed  int64
	DiskTotal int64
}

// Metrics asks the agent. The numbers are a sandbox's own word, so they are for its owner's eyes and nothing else.
func (g *Guest) Metrics(ctx context.Context) (Metrics, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/metrics", nil)
	if err != nil {
		return Metrics{}, err
	}
	res, err := g.client.Do(req)
	if err != nil {
		return Metrics{}, fmt.Errorf("ask the agent for metrics: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // read as far as we want it
	if res.StatusCode != http.StatusOK {
		return Metrics{}, &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "ask the agent for metrics", Err: fmt.Errorf("it answered %d", res.StatusCode)}
	}
	return readMetrics(io.LimitReader(res.Body, maxMetrics))
}

func readMetrics(r io.Reader) (Metrics, error) {
	var m struct {
		MemTotal  uint64 `json:"mem_total"`
		MemUsed   uint64 `json:"mem_used"`
		MemCache  uint64 `json:"mem_cache"`
		DiskUsed  uint64 `json:"disk_used"`
		DiskTotal uint64 `json:"disk_total"`
	}
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		return Metrics{}, fmt.Errorf("read the agent's metrics: %w", err)
	}
	const most = 1 << 53 // that a client's number holds exactly
	size := func(n uint64) int64 { return int64(min(n, most)) }
	return Metrics{size(m.MemTotal), size(m.MemUsed), size(m.MemCache), size(m.DiskUsed), size(m.DiskTotal)}, nil
}
