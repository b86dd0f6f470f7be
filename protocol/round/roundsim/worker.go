package roundsim

import "fermata/protocol/round"

// work begins the next action, if none is in progress.
func (n *node) work() {
	if n.worker.current != nil || len(n.worker.queue) == 0 {
		return
	}
	a := n.worker.queue[0]
	n.worker.queue = n.worker.queue[1:]
	n.worker.current = &a
	if a.Kind == round.GateAndDrain || a.Kind == round.CutGuests {
		n.guest.gated = true
		n.w.check.Gated(a.Round.Epoch, n.w.now)
	}
	takes := n.w.some(8)
	undoes := a.Kind == round.ResumeGuests || a.Kind == round.DiscardImage || a.Kind == round.KeepImage || a.Kind == round.ForgetImage
	if !undoes && n.w.chance(n.w.cfg.SlowStep) {
		takes *= 50
	}
	fails := !undoes && n.w.chance(n.w.cfg.StepFailure)
	if a.Kind == round.CutGuests && takes > pauseTicks*tick {
		takes, fails = pauseTicks*tick, true // the driver ends a pause
	}
	gen, life := n.worker.gen, n.gen
	n.w.after(takes, func() {
		if gen != n.worker.gen || life != n.gen {
			return
		}
		n.worker.current = nil
		if fails {
			n.w.logf("%s: %s fails", n.name, a)
			n.dropRest(a)
			n.input(func() { n.member.StepFailed(a.Round.Epoch, a.Kind.Step(), "injected") })
		} else {
			n.carryOut(a)
		}
		n.work()
	})
}

// dropRest forgets what waits behind a failed action. Only the actions of a cut
// are followed by others of their Ready.
func (n *node) dropRest(a round.Action) {
	for len(n.worker.queue) > 0 && n.worker.queue[0].Round == a.Round {
		n.worker.queue = n.worker.queue[1:]
	}
}

// carryOut is the moment at which an action takes effect.
func (n *node) carryOut(a round.Action) {
	w, e := n.w, a.Round.Epoch
	w.logf("%s: %s", n.name, a)
	switch a.Kind {
	case round.PrepareGuests:
		n.saving, n.recorded, n.cutOpen = nil, nil, e
		n.input(func() { n.member.GuestsPrepared(e, []byte("guests")) })
	case round.StopGuests:
		n.guest.stopped = true
		if n.passCut(a) {
			n.input(func() { n.member.GuestsStopped(e) })
		}
	case round.CutGuests:
		if n.passCut(a) {
			n.saving = n.takeImage()
			w.check.Saved(n.name, e)
			n.run()
			w.stats.ColouredCuts++
			n.input(func() { n.member.GuestsCut(e) })
		}
	case round.SendMarkers:
		w.fail(w.check.Marks(n.name, e, n.guest.epoch == e))
		for _, to := range a.Members {
			w.sendMarker(n.name, to, e)
		}
	case round.SaveState:
		n.saving = n.takeImage()
		w.check.Saved(n.name, e)
		n.input(func() { n.member.StateSaved(e) })
	case round.RecordChannels:
		if n.saving == nil {
			n.saving = n.takeImage() // only a broken member comes here
		}
		n.recordChannels()
	case round.ResumeGuests:
		n.resume()
		n.input(func() { n.member.GuestsResumed(e, []byte("report")) })
	case round.StartPersist:
		n.durable[e], n.saving = n.saving, nil
		w.check.Persisted(n.name, e)
		n.input(func() { n.member.PersistDone(e, []byte("image")) })
	case round.KeepImage:
		w.check.Keeps(n.name, e)
	case round.DiscardImage:
		n.saving = nil
		n.endCut()
		delete(n.durable, e)
		w.check.Discards(n.name, e)
	case round.ForgetImage:
		n.saving = nil
	}
}

// passCut is the guest's point on the cut. False: it cannot have one any more, as it
// has a frame from behind the cut.
func (n *node) passCut(a round.Action) bool {
	e := a.Round.Epoch
	if n.guest.newest >= e && !n.w.cfg.DeliverEarly {
		n.w.stats.Orphans++
		n.w.logf("%s: frame of epoch %d already received", n.name, n.guest.newest)
		n.dropRest(a)
		n.input(func() { n.member.StepFailed(e, a.Kind.Step(), "orphan") })
		return false
	}
	n.guest.epoch = e
	n.w.check.Stopped(n.name, e)
	n.recorded = make(map[round.NodeID][]int)
	for _, fr := range n.guest.held {
		n.record(fr)
	}
	return true
}

func (n *node) takeImage() *image {
	img := &image{sent: make(map[round.NodeID]int), received: make(map[round.NodeID][]int)}
	for _, other := range n.w.names {
		if other != n.name {
			img.sent[other] = n.w.links[linkID{n.name, other}].sent
			img.received[other] = append([]int(nil), n.guest.received[other]...)
		}
	}
	return img
}

func (n *node) recordChannels() {
	n.saving.channels = true
	if n.recorded != nil {
		n.saving.recorded = n.recorded
	}
	n.recorded = nil
}

func (n *node) resume() {
	if n.guest.gated && len(n.w.names) > 1 {
		n.w.stats.BarrierCuts++
	}
	n.run()
	n.endCut()
}

// run lets the guest run.
func (n *node) run() {
	n.guest.stopped, n.guest.gated = false, false
	n.deliver()
}

// endCut lets go what waits for the guest's cut.
func (n *node) endCut() {
	n.cutOpen, n.recorded = 0, nil
	n.deliver()
}
