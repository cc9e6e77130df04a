#include "store/status.h"

#include <cerrno>

#include "check.h"
#include "store/key.h"

namespace oneemb {
namespace {

TEST(StatusIsOkUntilItIsNot) {
  CHECK(Status().ok());
  const Status failed(StatusKind::kCorruption, "seg: bad");
  CHECK(!failed.ok());
  CHECK_EQ(failed.kind(), StatusKind::kCorruption);
  CHECK_EQ(failed.message(), "seg: bad");
}

Status AddOneUnless(const Status& status, int* n) {
  ONEEMB_RETURN_IF_ERROR(status);
  ++*n;
  return {};
}

TEST(ReturnIfErrorEndsTheFunctionOnErrorsOnly) {
  int n = 0;
  CHECK(AddOneUnless({}, &n).ok());
  CHECK_EQ(n, 1);
  CHECK_EQ(AddOneUnless({StatusKind::kLocked, "x"}, &n).message(), "x");
  CHECK_EQ(n, 1);
}

TEST(SystemErrorsNameCallPathAndReason) {
  CHECK_EQ(SystemError("open", "/a/b", ENOENT).message(),
           "open /a/b: No such file or directory");
  CHECK_EQ(SystemError("open", "a", ENOENT).kind(), StatusKind::kNotFound);
  CHECK_EQ(SystemError("write", "a", ENOSPC).kind(), StatusKind::kNoSpace);
  CHECK_EQ(SystemError("read", "a", EIO).kind(), StatusKind::kIoError);
  CHECK_EQ(SystemError("mkdir", "a", EEXIST).kind(),
           StatusKind::kAlreadyExists);
  CHECK_EQ(SystemError("link", "a", EXDEV).kind(), StatusKind::kNoLink);
  CHECK_EQ(SystemError("open", "a", EACCES).kind(), StatusKind::kIoError);
  CHECK_EQ(SystemError("open", "a", EACCES).error(), EACCES);
  CHECK_EQ(Status(StatusKind::kLocked, "x").error(), 0);
}

TEST(KeysCompareByTableAndId) {
  const Key key{17, 3};
  CHECK(key == (Key{17, 3}));
  CHECK(key != (Key{17, 4}));
  CHECK(key != (Key{18, 3}));
  CHECK((Key{~uint64_t{0}, 2}) < key);
  CHECK_EQ(ToString(key), "id 17 of table 3");
}

}  // namespace
}  // namespace oneemb
