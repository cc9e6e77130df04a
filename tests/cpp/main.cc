// Runs the tests of one executable: all of them, those named as arguments, or
// with k/n as the only argument every n-th, beginning with test k.
#include <algorithm>
#include <cstdlib>
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

// Names and a share of the tests; nothing chosen is everything.
struct Choice {
  std::vector<const char*> names;
  size_t first = 0;
  size_t stride = 1;

  bool Has(size_t i) const {
    if (i % stride != first) return false;
    return names.empty() ||
           std::any_of(names.begin(), names.end(), [&](const char* name) {
             return std::strcmp(Registry()[i].name, name) == 0;
           });
  }
};

// Whether the arguments make sense; what is wrong is printed.
bool Parse(int argc, char** argv, Choice* choice) {
  if (argc == 2 && std::strchr(argv[1], '/') != nullptr) {
    char* slash = nullptr;
    choice->first = std::strtoul(argv[1], &slash, 10);
    choice->stride = *slash == '/' ? std::strtoul(slash + 1, nullptr, 10) : 0;
    if (choice->first < choice->stride) return true;
    std::cerr << "no share " << argv[1] << '\n';
    return false;
  }
  choice->names.assign(argv + 1, argv + argc);
  for (const char* name : choice->names) {
    if (Exists(name)) continue;
    std::cerr << "no test named " << name << '\n';
    return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Choice choice;
  if (!Parse(argc, argv, &choice)) return 2;
  int passed = 0;
  int failed = 0;
  for (size_t i = 0; i < Registry().size(); ++i) {
    if (!choice.Has(i)) continue;
    const Test& test = Registry()[i];
    const bool ok = Passes(test);
    ++(ok ? passed : failed);
    std::cout << (ok ? "ok   " : "FAIL ") << test.name << '\n';
  }
  std::cout << passed << " passed, " << failed << " failed" << '\n';
  // No test at all is a mistake of the build, not a success.
  return failed == 0 && passed > 0 ? 0 : 1;
}
