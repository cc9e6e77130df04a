// Runs the tests of one executable: all of them, or those named as arguments.
#include <algorithm>
#include <cstring>
#include <exception>

#include "check.h"

namespace {

using oneemb::check::Registry;
using oneemb::check::Test;

bool Passes(const Test& test) {
  try {
    test.run();
    return true;
  } catch (const oneemb::check::Failure&) {
    return false;  // printed where it was found
  } catch (const std::exception& error) {
    std::cerr << "unexpected exception: " << error.what() << '\n';
    return false;
  }
}

bool Exists(const char* name) {
  return std::any_of(Registry().begin(), Registry().end(), [&](const Test& t) {
    return std::strcmp(t.name, name) == 0;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<const char*> wanted(argv + 1, argv + argc);
  for (const char* name : wanted) {
    if (Exists(name)) continue;
    std::cerr << "no test named " << name << '\n';
    return 2;
  }
  int passed = 0;
  int failed = 0;
  for (const Test& test : Registry()) {
    const bool chosen =
        wanted.empty() ||
        std::any_of(wanted.begin(), wanted.end(), [&](const char* name) {
          return std::strcmp(test.name, name) == 0;
        });
    if (!chosen) continue;
    const bool ok = Passes(test);
    ++(ok ? passed : failed);
    std::cout << (ok ? "ok   " : "FAIL ") << test.name << '\n';
  }
  std::cout << passed << " passed, " << failed << " failed" << '\n';
  // No test at all is a mistake of the build, not a success.
  return failed == 0 && passed > 0 ? 0 : 1;
}
