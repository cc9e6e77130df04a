// The folder of a store, as one owner holds it:
//
//   FORMAT  says that this is a store, and which kind
//   LOCK    held while a Store has the folder open
//   seg/    segments of the open store; worth nothing to the next one
//   snap/   snapshots, a folder each (snapshot.h)
//   tmp/    what is not finished
#pragma once

#include <memory>
#include <string>

#include "store/env.h"
#include "store/status.h"

namespace oneemb {

// Makes the folder, with its parents, or takes over one that a store has left:
// snapshots stay, everything else goes. kLocked when it has an owner;
// kInvalidArgument when it has files of something else, which are not touched;
// kCorruption when FORMAT is damaged or of a later version.
Status OpenFolder(Env* env, const std::string& root,
                  std::unique_ptr<FileLock>* lock);

// Removes the segments of a store that is closed: snapshots have links of their
// own. REQUIRES: `lock` is that of the folder. Nothing happens when somebody
// has deleted the folder: what is in its place is another store's.
Status CloseFolder(Env* env, const std::string& root, const FileLock& lock);

}  // namespace oneemb
