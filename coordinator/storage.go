package coordinator

import (
	"context"
	"errors"
	"time"

	"fermata/imageio/repository"
	"fermata/protocol/fault"
)

// storagePatience is how long the file system of the repository may take for one
// operation. A parallel file system that fails over answers within it.
const storagePatience = time.Minute

// glanceBudget bounds what is read of the repository before an operation begins:
// its cluster waits for it.
const glanceBudget = 15 * time.Second

// storage is the repository for one call: whatever its file system does, the
// call ends soon after ctx. Nothing here uses the repository in another way, as
// that could hold a term, a cluster or the end of the process for ever.
func (c *Coordinator) storage(ctx context.Context) *repository.Repository {
	return c.repo.Within(ctx, storagePatience)
}

// glance is ctx for a short look at the repository.
func (c *Coordinator) glance(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, glanceBudget,
		fault.New(fault.Unavailable, "the repository %s has not answered for %s", c.cfg.Repository.Dir, glanceBudget))
}

// openRepository opens the repository. It makes none: where there is none, its file
// system may not be mounted. It ends with ctx, although the file system may not answer.
func openRepository(ctx context.Context, cfg repository.Config) (*repository.Repository, error) {
	type opened struct {
		r   *repository.Repository
		err error
	}
	answer := make(chan opened, 1)
	go func() {
		r, err := repository.Open(ctx, cfg)
		if errors.Is(err, repository.ErrNotRepository) {
			err = fault.New(fault.NotFound, "%s is not a repository: mount its file system, or make one with fermata repo create %s", cfg.Dir, cfg.Dir)
		}
		answer <- opened{r, err}
	}()
	select {
	case o := <-answer:
		return o.r, RepositoryFault(o.err)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
