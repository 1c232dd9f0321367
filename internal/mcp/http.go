package mcp

import "net/http"

func (d *Door) newHTTP() http.Handler { return http.NotFoundHandler() }
