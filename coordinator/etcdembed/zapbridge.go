package etcdembed

import (
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/zap/zapcore"
)

// zapBridge takes etcd's log lines. Theirs are written for the operator of an
// etcd cluster; here they are one component's, a level lower.
type zapBridge struct {
	logger  hclog.Logger // immutable
	silence *atomic.Bool // shared by all bridges made from one
}

var _ zapcore.Core = (*zapBridge)(nil)

func newZapBridge(logger hclog.Logger) *zapBridge {
	return &zapBridge{logger: logger, silence: &atomic.Bool{}}
}

// quiet lowers every further line to debug: etcd reports the closing of its
// own listeners as errors.
func (b *zapBridge) quiet() { b.silence.Store(true) }

func (b *zapBridge) level(l zapcore.Level) hclog.Level {
	switch {
	case l >= zapcore.ErrorLevel && !b.silence.Load():
		return hclog.Warn
	case l >= zapcore.InfoLevel:
		return hclog.Debug
	default:
		return hclog.Trace
	}
}

// Enabled implements zapcore.LevelEnabler.
func (b *zapBridge) Enabled(l zapcore.Level) bool {
	switch b.level(l) {
	case hclog.Warn:
		return b.logger.IsWarn()
	case hclog.Debug:
		return b.logger.IsDebug()
	default:
		return b.logger.IsTrace()
	}
}

// With implements zapcore.Core.
func (b *zapBridge) With(fields []zapcore.Field) zapcore.Core {
	return &zapBridge{logger: b.logger.With(pairs(fields)...), silence: b.silence}
}

// Check implements zapcore.Core.
func (b *zapBridge) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return c.AddCore(e, b)
	}
	return c
}

// Write implements zapcore.Core.
func (b *zapBridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	b.logger.Log(b.level(e.Level), e.Message, pairs(fields)...)
	return nil
}

// Sync implements zapcore.Core.
func (b *zapBridge) Sync() error { return nil }

func pairs(fields []zapcore.Field) []any {
	list := make([]any, 0, 2*len(fields))
	for _, f := range fields {
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for key, value := range enc.Fields {
			list = append(list, key, value)
		}
	}
	return list
}
