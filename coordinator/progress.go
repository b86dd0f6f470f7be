package coordinator

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	"fermata/protocol/api"
)

// queuedEvents is how many lines of progress wait for a slow reader. Progress
// is for people: what a reader cannot take in time is dropped, so that it never
// holds up a round.
const queuedEvents = 64

// progress takes lines of progress. It never blocks.
type progress func(*api.Event)

// sendEvents runs work and streams the progress it reports, then its result.
// work's context ends when the reader goes away.
func sendEvents(stream grpc.ServerStreamingServer[api.Event], work func(ctx context.Context, p progress) (*api.Event, error)) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	queue := make(chan *api.Event, queuedEvents)
	var sender sync.WaitGroup
	sender.Go(func() {
		for e := range queue {
			if err := stream.Send(e); err != nil {
				cancel(err)
				for range queue { // nobody reads any more
				}
				return
			}
		}
	})
	result, err := work(ctx, func(e *api.Event) {
		select {
		case queue <- e:
		default:
		}
	})
	close(queue) // work has ended, and with it every goroutine that reports
	sender.Wait()
	if err != nil {
		return err
	}
	return stream.Send(result)
}
