// Snapshots: folders that hold all rows of one moment, and nothing else's.
//
//   <root>/snap/<name>/{MANIFEST, LIVE, <segments, by hard link>}
//
// A snapshot appears under its name whole and on the disk, or not at all. It
// can be copied elsewhere and read there, and reading takes no lock.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "store/env.h"
#include "store/manifest.h"
#include "store/segment_map.h"
#include "store/segment_writer.h"
#include "store/status.h"

namespace oneemb {

// Folders of a store, below its root.
std::string SegmentFolder(const std::string& root);
std::string SnapshotFolder(const std::string& root);
std::string TemporaryFolder(const std::string& root);
// The folder of one snapshot.
std::string SnapshotPath(const std::string& root, const std::string& name);

// kInvalidArgument unless the name is 1 to 200 letters, digits, '.', '_' or '-'
// and does not begin with '.'.
Status CheckSnapshotName(const std::string& name);

// Makes one snapshot. For one thread at a time. What is not committed is
// removed with this object.
class SnapshotWriter {
 public:
  SnapshotWriter(std::shared_ptr<Env> env, std::string root);
  ~SnapshotWriter();
  SnapshotWriter(const SnapshotWriter&) = delete;
  SnapshotWriter& operator=(const SnapshotWriter&) = delete;

  // kAlreadyExists when there is a snapshot of this name.
  Status Begin(const std::string& name);
  // Takes over sealed segments, by hard link. Where `folder` cannot be linked
  // to, by copy.
  Status AddSegments(const std::string& folder,
                     const std::vector<SegmentView>& views);
  // Writes rows of the snapshot's own; no key twice. SealRows ends them.
  Status AddRows(const SegmentWriterOptions& options, KeySpan keys,
                 const char* rows);
  Status SealRows();
  // Takes out all that was added.
  Status Restart();
  // After ok the snapshot survives a loss of power.
  Status Commit(int64_t row_bytes, const std::string& user);

  const std::string& name() const { return name_; }
  const std::vector<SegmentView>& views() const { return views_; }

 private:
  Status WriteLive(std::vector<ManifestSegment>* segments);
  Status Publish(const std::string& parent, const std::string& path);

  const std::shared_ptr<Env> env_;
  const std::string root_;
  std::string name_;
  std::string folder_;  // the temporary one; empty: none
  std::vector<SegmentView> views_;
  std::unique_ptr<SegmentWriter> rows_;
};

// An open snapshot.
struct Snapshot {
  Manifest manifest;
  std::vector<SegmentView> views;
};

// Opens the snapshot in a folder and checks all but its rows. On an error
// *snapshot is unspecified.
Status OpenSnapshot(Env* env, const std::string& path, Snapshot* snapshot);

// Links the snapshot's segments into `folder` and makes a map of its rows, for
// later segments of `slots` slots. On an error the folder is as it was.
Status BuildMap(Env* env, const std::string& path, const Snapshot& snapshot,
                const std::string& folder, int64_t slots,
                std::shared_ptr<SegmentMap>* map);

// Told how many rows were read, now and then; what it returns but ok ends the
// reading.
using ReadProgress = std::function<Status(int64_t rows)>;

// Reads every row of an open snapshot; kCorruption names the first bad one.
Status CheckSnapshotRows(Env* env, const std::string& path,
                         const Snapshot& snapshot,
                         const ReadProgress& progress = nullptr);

// The same for a snapshot that is not open, and looks for rows that are there
// twice: an index of all of them is made for it. Load finds those too.
Status VerifySnapshot(Env* env, const std::string& path,
                      const ReadProgress& progress = nullptr);

// Names, sorted. None where there is no store.
Status ListSnapshots(Env* env, const std::string& root,
                     std::vector<std::string>* names);
// kNotFound when there is none. After another error it is gone or whole. The
// space is free when no other snapshot and no
// open store has the rows.
Status DeleteSnapshot(Env* env, const std::string& root,
                      const std::string& name);

}  // namespace oneemb
