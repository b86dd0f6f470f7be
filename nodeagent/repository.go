package nodeagent

import (
	"context"
	"errors"
	"sync"
	"time"

	"fermata/imageio/repository"
	"fermata/protocol/fault"
)

const (
	// openRetry spaces attempts to open the repository.
	openRetry = 2 * time.Second
	// openPatience is how long the first calls wait for a repository that is there.
	openPatience = 2 * time.Second
)

// lateRepository is the repository of a node, which may come later than the node: its
// guests and their wire do not need it.
//
// Concurrency: safe for use by several goroutines.
type lateRepository struct {
	mu      sync.Mutex
	repo    *repository.Repository // guarded by mu; nil until it is open
	problem error                  // guarded by mu; why it is not open; nil: not tried to the end
}

// set makes r, which is open, the node's repository.
func (l *lateRepository) set(r *repository.Repository) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.repo, l.problem = r, nil
}

// failed notes why the repository is not open, and reports whether that is news.
func (l *lateRepository) failed(err error) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	news = l.problem == nil || l.problem.Error() != err.Error()
	l.problem = err
	return news
}

// why says why the repository cannot be used; empty: it can.
func (l *lateRepository) why() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.repo != nil:
		return ""
	case l.problem == nil:
		return "its file system has not answered yet"
	}
	return l.problem.Error()
}

// storage is the repository for one call, which ends with ctx whatever the file system
// does. On error it is not open yet.
func (a *Agent) storage(ctx context.Context) (*repository.Repository, error) {
	a.repo.mu.Lock()
	repo, problem := a.repo.repo, a.repo.problem
	a.repo.mu.Unlock()
	if repo != nil {
		return repo.Within(ctx, 0), nil
	}
	class := fault.ClassOf(problem)
	if class == fault.None || class == fault.Internal {
		class = fault.Unavailable
	}
	return nil, fault.New(class, "node %s cannot use its repository: %s; its guests run on, and the agent keeps trying", a.cfg.Name, a.repo.why())
}

// openRepository opens the repository as soon as it can be opened, until ctx ends. The
// first attempt has ended, or taken openPatience, when tried is closed.
func (a *Agent) openRepository(ctx context.Context, tried chan<- struct{}) {
	first := sync.OnceFunc(func() { close(tried) })
	defer time.AfterFunc(openPatience, first).Stop()
	for {
		repo, err := a.attempt(ctx)
		if err == nil {
			a.repo.set(repo)
			a.log.Info("repository is open", "repository", a.cfg.Repository.Dir)
			first()
			return
		}
		if ctx.Err() == nil && a.repo.failed(err) {
			a.log.Error("the repository cannot be used: guests run on, checkpoints and restarts wait", "repository", a.cfg.Repository.Dir, "error", err)
		}
		first()
		select {
		case <-ctx.Done():
			return
		case <-time.After(openRetry):
		}
	}
}

// attempt opens the repository. It ends with ctx, although the file system, or the
// command that prints the key, may not answer.
func (a *Agent) attempt(ctx context.Context) (*repository.Repository, error) {
	type opened struct {
		repo *repository.Repository
		err  error
	}
	answer := make(chan opened, 1)
	go func() {
		cfg := a.cfg.Repository
		var err error
		if a.cfg.RepositoryKey != nil {
			cfg.Key, err = a.cfg.RepositoryKey(ctx)
		}
		var repo *repository.Repository
		if err == nil {
			repo, err = repository.Open(ctx, cfg)
		}
		if errors.Is(err, repository.ErrNotRepository) {
			err = fault.New(fault.Unavailable, "there is no repository in %s; is its file system mounted?", cfg.Dir)
		}
		answer <- opened{repo, repositoryFault(err)}
	}()
	select {
	case o := <-answer:
		return o.repo, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
