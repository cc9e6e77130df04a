#include "store/snapshot.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <new>
#include <utility>

#include "store/crc32c.h"
#include "store/files.h"
#include "store/key_parts.h"

namespace oneemb {
namespace {

constexpr char kManifestName[] = "MANIFEST";
constexpr char kLiveName[] = "LIVE";
// A manifest of a million segments; more is no manifest.
constexpr int64_t kMaxManifestBytes = int64_t{64} << 20;

Status Corrupt(const std::string& path, const std::string& fact) {
  return {StatusKind::kCorruption, path + ": " + fact};
}

// A name that nobody else has, for things not finished.
std::string TemporaryName(Env* env, const std::string& root,
                          const std::string& name) {
  return JoinPath(TemporaryFolder(root),
                  name + "." + std::to_string(env->Random()));
}

}  // namespace

std::string SegmentFolder(const std::string& root) {
  return JoinPath(root, "seg");
}
std::string SnapshotFolder(const std::string& root) {
  return JoinPath(root, "snap");
}
std::string TemporaryFolder(const std::string& root) {
  return JoinPath(root, "tmp");
}
std::string SnapshotPath(const std::string& root, const std::string& name) {
  return JoinPath(SnapshotFolder(root), name);
}

Status CheckSnapshotName(const std::string& name) {
  constexpr size_t kLongest = 200;
  const bool good =
      !name.empty() && name.size() <= kLongest && name[0] != '.' &&
      std::all_of(name.begin(), name.end(), [](unsigned char c) {
        return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
      });
  if (good) return {};
  return {StatusKind::kInvalidArgument,
          "snapshot name \"" + name +
              "\": use 1 to 200 letters, digits, '.', '_' or '-', the first "
              "not a '.'"};
}

// --- writing ---

SnapshotWriter::SnapshotWriter(std::shared_ptr<Env> env, std::string root)
    : env_(std::move(env)), root_(std::move(root)) {}

SnapshotWriter::~SnapshotWriter() {
  rows_ = nullptr;
  if (folder_.empty()) return;
  // What stays, for want of memory say, is cleared when the store is opened.
  try {
    (void)RemoveTree(env_.get(), folder_);
  } catch (const std::bad_alloc&) {
    return;
  }
}

Status SnapshotWriter::Begin(const std::string& name) {
  ONEEMB_RETURN_IF_ERROR(CheckSnapshotName(name));
  std::vector<std::string> names;
  ONEEMB_RETURN_IF_ERROR(ListSnapshots(env_.get(), root_, &names));
  if (std::find(names.begin(), names.end(), name) != names.end()) {
    return {StatusKind::kAlreadyExists,
            SnapshotPath(root_, name) +
                ": there is a snapshot of this name; delete it first"};
  }
  const std::string folder = TemporaryName(env_.get(), root_, name);
  ONEEMB_RETURN_IF_ERROR(env_->MakeFolder(folder));
  name_ = name;
  folder_ = folder;
  return {};
}

Status SnapshotWriter::AddSegments(const std::string& folder,
                                   const std::vector<SegmentView>& views) {
  for (const SegmentView& view : views) {
    const std::string& file = view.segment->name;
    ONEEMB_RETURN_IF_ERROR(LinkOrCopy(env_.get(), JoinPath(folder, file),
                                      JoinPath(folder_, file)));
    views_.push_back(view);
  }
  return {};
}

Status SnapshotWriter::AddRows(const SegmentWriterOptions& options,
                               KeySpan keys, const char* rows) {
  if (rows_ == nullptr) {
    SegmentWriterOptions own = options;
    own.folder = folder_;
    rows_ = std::make_unique<SegmentWriter>(std::move(own));
  }
  std::vector<SlotRun> runs;
  ONEEMB_RETURN_IF_ERROR(rows_->Append(keys, rows, &runs));
  for (const SlotRun& run : runs) {
    if (views_.empty() || views_.back().segment != run.segment) {
      views_.push_back(
          {run.segment, Bitmap(options.slots_per_segment), 0, false});
    }
    for (int64_t i = 0; i < run.count; ++i) {
      views_.back().live.Set(run.first_slot + i);
    }
  }
  return {};
}

Status SnapshotWriter::SealRows() {
  if (rows_ == nullptr) return {};
  rows_->Close();
  while (const ClosedSegment* const closed = rows_->FirstClosed()) {
    ONEEMB_RETURN_IF_ERROR(closed->sealed);
    for (SegmentView& view : views_) {
      if (view.segment == closed->segment) view.num_slots = closed->num_slots;
    }
    rows_->PopClosed();
  }
  return {};
}

Status SnapshotWriter::Restart() {
  rows_ = nullptr;
  views_.clear();
  return ClearFolder(env_.get(), folder_);
}

Status SnapshotWriter::WriteLive(std::vector<ManifestSegment>* segments) {
  std::string live;
  for (const SegmentView& view : views_) {
    const auto bytes = static_cast<size_t>(LiveBytes(view.num_slots));
    const auto* words = reinterpret_cast<const char*>(view.live.words().data());
    segments->push_back({view.segment->number, view.segment->salt,
                         view.num_slots, view.live.Count(),
                         Crc32c(words, static_cast<int64_t>(bytes))});
    live.append(words, bytes);
  }
  return WriteFile(env_.get(), JoinPath(folder_, kLiveName), live.data(),
                   static_cast<int64_t>(live.size()));
}

Status SnapshotWriter::Commit(int64_t row_bytes, const std::string& user) {
  if (static_cast<int64_t>(user.size()) > kMaxUserBytes) {
    return {StatusKind::kInvalidArgument,
            "user: " + std::to_string(user.size()) + " bytes, at most " +
                std::to_string(kMaxUserBytes) + " fit into a snapshot"};
  }
  Manifest manifest;
  manifest.row_bytes = row_bytes;
  manifest.user = user;
  ONEEMB_RETURN_IF_ERROR(WriteLive(&manifest.segments));
  for (const ManifestSegment& segment : manifest.segments) {
    manifest.num_rows += segment.num_live;
  }
  const std::string bytes = EncodeManifest(manifest);
  ONEEMB_RETURN_IF_ERROR(WriteFile(env_.get(), JoinPath(folder_, kManifestName),
                                   bytes.data(),
                                   static_cast<int64_t>(bytes.size())));
  ONEEMB_RETURN_IF_ERROR(env_->SyncFolder(folder_));
  return Publish(SnapshotFolder(root_), SnapshotPath(root_, name_));
}

Status SnapshotWriter::Publish(const std::string& parent,
                               const std::string& path) {
  ONEEMB_RETURN_IF_ERROR(env_->Rename(folder_, path));
  Status synced;
  try {
    synced = env_->SyncFolder(parent);
  } catch (const std::bad_alloc&) {
    synced = {StatusKind::kNoMemory, "no memory"};
  }
  if (!synced.ok()) {
    // Not known to be on the disk, so not a snapshot: it goes, with this
    // object, or, if that fails too, stays as a whole one.
    (void)env_->Rename(path, folder_);
    return synced;
  }
  folder_.clear();
  return {};
}

// --- reading ---

namespace {

Status ReadManifest(Env* env, const std::string& path, Manifest* manifest) {
  const std::string file = JoinPath(path, kManifestName);
  AlignedBuffer bytes;
  const Status read = ReadFile(env, file, kMaxManifestBytes, &bytes);
  if (read.kind() == StatusKind::kNotFound) {
    return {StatusKind::kNotFound,
            path + ": no snapshot (" + file + " does not exist)"};
  }
  ONEEMB_RETURN_IF_ERROR(read);
  return DecodeManifest(bytes.data(), bytes.size(), file, manifest);
}

Status CheckLive(const ManifestSegment& segment, const std::string& path,
                 const char* bytes, Bitmap* live) {
  const int64_t size = LiveBytes(segment.num_slots);
  *live = Bitmap(segment.num_slots);
  std::memcpy(live->words().data(), bytes, static_cast<size_t>(size));
  if (Crc32c(bytes, size) != segment.live_crc) {
    return Corrupt(path, "the checksum of a part is wrong");
  }
  if (live->Count() != segment.num_live ||
      live->EndOfSet() > segment.num_slots) {
    return Corrupt(path, "does not have the live rows that MANIFEST says");
  }
  return {};
}

Status ReadLive(Env* env, const std::string& path, Snapshot* snapshot) {
  const std::string file = JoinPath(path, kLiveName);
  int64_t bytes = 0;
  for (const ManifestSegment& segment : snapshot->manifest.segments) {
    bytes += LiveBytes(segment.num_slots);
  }
  AlignedBuffer live;
  ONEEMB_RETURN_IF_ERROR(ReadFile(env, file, bytes, &live));
  if (live.size() != bytes) return Corrupt(file, "cut off");
  const char* next = live.data();
  for (size_t s = 0; s < snapshot->views.size(); ++s) {
    const ManifestSegment& segment = snapshot->manifest.segments[s];
    ONEEMB_RETURN_IF_ERROR(
        CheckLive(segment, file, next, &snapshot->views[s].live));
    next += LiveBytes(segment.num_slots);
  }
  return {};
}

// Opens a segment that a manifest names, in any folder.
Status OpenNamed(Env* env, const std::string& folder,
                 const ManifestSegment& named, int64_t row_bytes,
                 std::shared_ptr<const Segment>* segment,
                 SegmentTrailer* trailer) {
  const std::string name = SegmentName(named.number, named.salt);
  ONEEMB_RETURN_IF_ERROR(OpenSegment(env, folder, name, segment, trailer));
  if ((*segment)->number != named.number || (*segment)->salt != named.salt ||
      (*segment)->layout.row_bytes != row_bytes ||
      static_cast<int64_t>(trailer->num_slots) != named.num_slots) {
    return Corrupt(JoinPath(folder, name), "not the segment of this name");
  }
  return {};
}

}  // namespace

Status OpenSnapshot(Env* env, const std::string& path, Snapshot* snapshot) {
  ONEEMB_RETURN_IF_ERROR(ReadManifest(env, path, &snapshot->manifest));
  const Manifest& manifest = snapshot->manifest;
  snapshot->views.clear();
  for (const ManifestSegment& named : manifest.segments) {
    SegmentView view;
    SegmentTrailer trailer{};
    ONEEMB_RETURN_IF_ERROR(OpenNamed(env, path, named, manifest.row_bytes,
                                     &view.segment, &trailer));
    view.num_slots = named.num_slots;
    view.durable = true;
    snapshot->views.push_back(std::move(view));
  }
  return ReadLive(env, path, snapshot);
}

namespace {

// Adds the live rows of a sealed segment to a map that has none of them yet.
Status PublishSegment(Env* env, const SegmentView& view,
                      const std::shared_ptr<const Segment>& segment,
                      const SegmentTrailer& trailer, SegmentMap* map) {
  SegmentKeys keys;
  ONEEMB_RETURN_IF_ERROR(ReadSegmentKeys(env, *segment, trailer, &keys));
  std::vector<Key> live;
  std::vector<uint64_t> locations;
  const int64_t place = map->Add(segment);
  for (int64_t slot = view.live.NextSet(0); slot < view.live.size();
       slot = view.live.NextSet(slot + 1)) {
    live.push_back(keys.At(slot));
    locations.push_back(map->Location(place, slot));
  }
  const int64_t before = map->size();
  const auto count = static_cast<int64_t>(live.size());
  ONEEMB_RETURN_IF_ERROR(
      map->Publish(KeyParts({live.data(), count}), locations.data()));
  map->Close(place, view.num_slots, true);
  if (map->size() != before + count) {
    return Corrupt(segment->file->path(),
                   "holds a row that the snapshot has elsewhere too");
  }
  return {};
}

// Files put into a folder, taken out again unless Keep() is called.
class NewFiles {
 public:
  explicit NewFiles(Env* env) : env_(env) {}
  ~NewFiles() {
    try {
      for (const std::string& path : paths_) (void)env_->Remove(path);
    } catch (const std::bad_alloc&) {
      return;  // they cost space until the store is opened again
    }
  }
  NewFiles(const NewFiles&) = delete;
  NewFiles& operator=(const NewFiles&) = delete;

  void Add(std::string path) { paths_.push_back(std::move(path)); }
  void Keep() { paths_.clear(); }

 private:
  Env* const env_;
  std::vector<std::string> paths_;
};

}  // namespace

Status BuildMap(Env* env, const std::string& path, const Snapshot& snapshot,
                const std::string& folder, int64_t slots,
                std::shared_ptr<SegmentMap>* map) {
  std::vector<std::string> names;
  ONEEMB_RETURN_IF_ERROR(env->List(folder, &names));
  int64_t most_slots = slots;
  for (const SegmentView& view : snapshot.views) {
    most_slots = std::max(most_slots, view.num_slots);
  }
  auto fresh = std::make_shared<SegmentMap>(slots, most_slots);
  ONEEMB_RETURN_IF_ERROR(fresh->Reserve(
      snapshot.manifest.num_rows, static_cast<int64_t>(snapshot.views.size())));
  NewFiles files(env);
  for (size_t s = 0; s < snapshot.views.size(); ++s) {
    const ManifestSegment& named = snapshot.manifest.segments[s];
    const std::string& name = snapshot.views[s].segment->name;
    // A segment that the store still has is this very file.
    if (!std::binary_search(names.begin(), names.end(), name)) {
      files.Add(JoinPath(folder, name));
      ONEEMB_RETURN_IF_ERROR(
          LinkOrCopy(env, JoinPath(path, name), JoinPath(folder, name)));
    }
    std::shared_ptr<const Segment> segment;
    SegmentTrailer trailer{};
    ONEEMB_RETURN_IF_ERROR(OpenNamed(
        env, folder, named, snapshot.manifest.row_bytes, &segment, &trailer));
    ONEEMB_RETURN_IF_ERROR(
        PublishSegment(env, snapshot.views[s], segment, trailer, fresh.get()));
  }
  files.Keep();
  *map = std::move(fresh);
  return {};
}

namespace {

// Reads the live rows of a segment and compares each key with `keys`.
Status VerifyRows(Env* env, const SegmentView& view, const SegmentKeys& keys,
                  const ReadProgress& progress) {
  constexpr int64_t kReadBytes = int64_t{1} << 20;
  SegmentScan scan(view.segment, view.live);
  RowBatch batch;
  for (;;) {
    ONEEMB_RETURN_IF_ERROR(scan.Next(env, kReadBytes, &batch));
    if (!batch.bad.empty()) return batch.bad.front();
    if (batch.empty()) return {};
    for (size_t i = 0; i < batch.keys.size(); ++i) {
      if (batch.keys[i] != keys.At(batch.slots[i])) {
        return DamagedRow(*view.segment, batch.slots[i], &batch.keys[i]);
      }
    }
    if (progress == nullptr) continue;
    const auto count = static_cast<int64_t>(batch.keys.size());
    ONEEMB_RETURN_IF_ERROR(progress(count));
  }
}

}  // namespace

Status CheckSnapshotRows(Env* env, const std::string& path,
                         const Snapshot& snapshot,
                         const ReadProgress& progress) {
  for (const SegmentView& view : snapshot.views) {
    std::shared_ptr<const Segment> segment;
    SegmentTrailer trailer{};
    SegmentKeys keys;
    ONEEMB_RETURN_IF_ERROR(
        OpenSegment(env, path, view.segment->name, &segment, &trailer));
    ONEEMB_RETURN_IF_ERROR(ReadSegmentKeys(env, *segment, trailer, &keys));
    ONEEMB_RETURN_IF_ERROR(VerifyRows(env, view, keys, progress));
  }
  return {};
}

Status VerifySnapshot(Env* env, const std::string& path,
                      const ReadProgress& progress) {
  Snapshot snapshot;
  ONEEMB_RETURN_IF_ERROR(OpenSnapshot(env, path, &snapshot));
  ONEEMB_RETURN_IF_ERROR(CheckSnapshotRows(env, path, snapshot, progress));
  int64_t slots = 1;
  for (const SegmentView& view : snapshot.views) {
    slots = std::max(slots, view.num_slots);
  }
  SegmentMap map(slots);  // finds a row that is there twice
  for (const SegmentView& view : snapshot.views) {
    std::shared_ptr<const Segment> segment;
    SegmentTrailer trailer{};
    ONEEMB_RETURN_IF_ERROR(
        OpenSegment(env, path, view.segment->name, &segment, &trailer));
    ONEEMB_RETURN_IF_ERROR(PublishSegment(env, view, segment, trailer, &map));
  }
  return {};
}

Status ListSnapshots(Env* env, const std::string& root,
                     std::vector<std::string>* names) {
  Status listed = env->List(SnapshotFolder(root), names);
  if (listed.kind() != StatusKind::kNotFound) return listed;
  names->clear();
  return {};
}

Status DeleteSnapshot(Env* env, const std::string& root,
                      const std::string& name) {
  ONEEMB_RETURN_IF_ERROR(CheckSnapshotName(name));
  const std::string doomed = TemporaryName(env, root, name);
  // In one step: nobody ever finds half a snapshot.
  const Status renamed = env->Rename(SnapshotPath(root, name), doomed);
  if (renamed.kind() == StatusKind::kNotFound) {
    return {StatusKind::kNotFound,
            SnapshotPath(root, name) + ": no such snapshot"};
  }
  ONEEMB_RETURN_IF_ERROR(renamed);
  ONEEMB_RETURN_IF_ERROR(env->SyncFolder(SnapshotFolder(root)));
  return RemoveTree(env, doomed);
}

}  // namespace oneemb
