// The counters of a table: uint64 values in the leaf uint32[shards, n, 2].
// The order is known to oneemb_jax/table.py too.
#pragma once

namespace oneemb {

enum Counter : int {
  kRows = 0,          // rows present; also the next free slot, if not cached
  kHits,              // looked-up ids with a row, added by update
  kMisses,            // looked-up ids without one, added by update
  kInserts,           // rows inserted
  kOverflows,         // gradients dropped because the table was full
  kBadTables,         // ids with a table id out of range
  kNonFinite,         // gradients with a NaN or an infinity, applied; one for
                      // a row whose gradients are finite and their scaled sum
                      // is not
  kBadLearningRates,  // updates refused for a negative or non-finite rate
  kUnstaged,          // ids of a cached table that were not staged
  kStale,             // operations refused on a superseded table
  kDamagedContexts,   // updates refused for a context that was changed
  kStaged,            // batches that were staged; the clock of a cached table
  kSlotsUsed,         // slots of a cached table that were ever in use
  kNumCounters
};

// What a lookup counts, in the order of LookupContext.counts; the last word is
// the checksum of its context (core/checksum.h).
enum LookupCount : int {
  kLookupHits = 0,
  kLookupMisses,
  kLookupBadTables,
  kLookupChecksum,
  kNumLookupCounts
};

}  // namespace oneemb
