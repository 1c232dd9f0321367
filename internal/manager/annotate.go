package manager

import (
	"context"

	"github.com/firebreak-dev/firebreak/internal/store"
)

// Annotate sets what a door notes of a living sandbox; an empty text takes the note away. KindInvalid if that is too much.
func (m *Manager) Annotate(ctx context.Context, ref string, notes map[string]string) (store.Record, error) {
	return m.alone(ctx, ref, func(ctx context.Context, b *box) (store.Record, error) {
		return m.change(ctx, b, func(r *store.Record) error {
			all := map[string]string{}
			for _, from := range []map[string]string{r.Annotations, notes} {
				for k, v := range from {
					if all[k] = v; v == "" {
						delete(all, k)
					}
				}
			}
			r.Annotations = all
			return Request{Annotations: all}.check()
		})
	})
}
