// A small test registry. A file of tests is a list of
//   TEST(AddsUp) { CHECK_EQ(1 + 1, 2); }
// linked with main.cc. A failed check prints its expression, its values and
// where it stands, and ends that test by an exception; so checks belong on the
// thread that runs the test.
#pragma once

#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace oneemb::check {

struct Test {
  const char* name;
  void (*run)();
};
struct Failure : std::exception {};

inline std::vector<Test>& Registry() {
  static std::vector<Test> tests;
  return tests;
}

inline bool Register(const char* name, void (*run)()) noexcept {
  Registry().push_back({name, run});
  return true;
}

[[noreturn]] inline void Fail(const std::string& what, const char* file,
                              int line) {
  std::cerr << file << ":" << line << ": " << what << '\n';
  throw Failure{};
}

template <class T>
std::string Show(const T& value) {
  std::ostringstream out;
  out.precision(17);
  if constexpr (std::is_enum_v<T>) {
    out << +static_cast<std::underlying_type_t<T>>(value);
  } else if constexpr (std::is_arithmetic_v<T>) {
    out << +value;  // + shows a uint8_t as a number
  } else {
    out << value;
  }
  return out.str();
}

template <class A, class B>
void CheckEq(const A& a, const B& b, const char* text, const char* file,
             int line) {
  bool equal = false;
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
    using C = std::common_type_t<A, B>;  // equal as numbers, not only as bits
    equal = static_cast<C>(a) == static_cast<C>(b) && (a < A{}) == (b < B{});
  } else {
    equal = a == b;
  }
  if (!equal) Fail(text + (": " + Show(a)) + " against " + Show(b), file, line);
}

inline void CheckNear(double a, double b, double tolerance, const char* text,
                      const char* file, int line) {
  const double distance = a < b ? b - a : a - b;
  if (a == b || distance <= tolerance) return;  // a NaN is near nothing
  Fail(text + (": " + Show(a)) + " against " + Show(b), file, line);
}

}  // namespace oneemb::check

#define TEST(name)                                       \
  static void Test##name();                              \
  [[maybe_unused]] static const bool registered_##name = \
      ::oneemb::check::Register(#name, &Test##name);     \
  static void Test##name()
#define CHECK(condition) \
  ((condition)           \
       ? void(0)         \
       : ::oneemb::check::Fail("CHECK(" #condition ")", __FILE__, __LINE__))
#define CHECK_EQ(a, b) \
  ::oneemb::check::CheckEq(a, b, "CHECK_EQ(" #a ", " #b ")", __FILE__, __LINE__)
#define CHECK_NEAR(a, b, tolerance)                                        \
  ::oneemb::check::CheckNear(a, b, tolerance,                              \
                             "CHECK_NEAR(" #a ", " #b ", " #tolerance ")", \
                             __FILE__, __LINE__)
