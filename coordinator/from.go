package coordinator

import (
	"strconv"
	"strings"

	"fermata/coordinator/store"
	"fermata/protocol/fault"
)

// latest is the word for the newest intact checkpoint.
const latest = "latest"

// parseID reads CLUSTER@EPOCH.
func parseID(id string) (cluster string, epoch uint64, err error) {
	cluster, digits, found := strings.Cut(id, "@")
	if !found {
		return "", 0, fault.New(fault.Invalid, "checkpoint %.100q: want CLUSTER@EPOCH", id)
	}
	if err := store.CheckName("cluster", cluster); err != nil {
		return "", 0, err
	}
	epoch, err = parseEpoch(digits)
	return cluster, epoch, err
}

func parseEpoch(digits string) (uint64, error) {
	epoch, err := strconv.ParseUint(digits, 10, 64)
	// Exactly one text names an epoch, so that names can be compared.
	if err != nil || epoch == 0 || strconv.FormatUint(epoch, 10) != digits {
		return 0, fault.New(fault.Invalid, "epoch %.40q: want a number from 1", digits)
	}
	return epoch, nil
}

// parseFrom reads which checkpoint of a cluster is meant: CLUSTER@EPOCH, EPOCH,
// or latest, for which the epoch is zero.
func parseFrom(cluster, from string) (epoch uint64, err error) {
	switch {
	case from == "", from == latest:
		return 0, nil
	case strings.Contains(from, "@"):
		of, epoch, err := parseID(from)
		if err != nil {
			return 0, err
		}
		if of != cluster {
			return 0, fault.New(fault.Invalid, "checkpoint %s is not of cluster %s", from, cluster)
		}
		return epoch, nil
	}
	return parseEpoch(from)
}
