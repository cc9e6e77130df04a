# What every target of ours has in common, and one function per kind of target.

# Flags that decide results. The same source must give the same bits on every
# machine: no contraction into fused multiply-adds, no -ffast-math. math-errno
# and trapping-math change no value and only keep loops from vectorising.
add_library(oneemb_flags INTERFACE)
target_compile_features(oneemb_flags INTERFACE cxx_std_17)
target_compile_options(oneemb_flags INTERFACE
  -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math
  -fvisibility=hidden -fvisibility-inlines-hidden)
target_include_directories(oneemb_flags INTERFACE
  "${PROJECT_SOURCE_DIR}/xla_ffi")
# Of what is built once more for CPUs with AVX2. Those that know no prefetchw take
# it for a nop.
set(ONEEMB_V3_OPTIONS -march=x86-64-v3 -mprfchw)
find_package(Threads REQUIRED)
target_link_libraries(oneemb_flags INTERFACE Threads::Threads)

add_library(oneemb_warnings INTERFACE)
target_compile_options(oneemb_warnings INTERFACE
  -Wall -Wextra -Wconversion -Wshadow -Wnon-virtual-dtor -Wundef
  # g++ has it apart from -Wconversion.
  $<$<CXX_COMPILER_ID:Clang>:-Wno-sign-conversion>
  $<$<BOOL:${ONEEMB_WERROR}>:-Werror>)

if(ONEEMB_SANITIZE)
  string(REPLACE ";" "," oneemb_sanitizers "${ONEEMB_SANITIZE}")
  target_compile_options(oneemb_flags INTERFACE
    "-fsanitize=${oneemb_sanitizers}" -fno-sanitize-recover=all
    -fno-omit-frame-pointer -g)
  target_compile_definitions(oneemb_flags INTERFACE _GLIBCXX_ASSERTIONS)
  target_link_options(oneemb_flags INTERFACE
    "-fsanitize=${oneemb_sanitizers}")
endif()

if(ONEEMB_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "ONEEMB_FUZZ=ON, but ${CMAKE_CXX_COMPILER} is not "
      "clang, which alone has libFuzzer. Set CMAKE_CXX_COMPILER=clang++.")
  endif()
  target_compile_options(oneemb_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# Fails when a source of `folder` is in none of the lists: a forgotten file
# would only show as a missing symbol, or, for a test, not at all.
function(oneemb_check_listed folder pattern)
  file(GLOB present RELATIVE "${PROJECT_SOURCE_DIR}" CONFIGURE_DEPENDS
    "${PROJECT_SOURCE_DIR}/${folder}/${pattern}")
  list(REMOVE_ITEM present ${ARGN})
  if(present)
    message(FATAL_ERROR "Not listed in CMake: ${present}")
  endif()
endfunction()

# oneemb_module(<name> <extra compile options>...): the whole library as one
# nanobind module, in the package's folder.
function(oneemb_module name)
  set(stable_abi "")
  if(Python_VERSION VERSION_GREATER_EQUAL 3.12)
    set(stable_abi STABLE_ABI)
  endif()
  # NOMINSIZE: nanobind's default is -Os. NOSTRIP keeps names for perf.
  # A domain of its own: both modules have the same classes, and one process
  # loads both.
  nanobind_add_module(${name} ${stable_abi} NB_STATIC NOMINSIZE NOSTRIP
    NB_DOMAIN ${name}
    NB_SUPPRESS_WARNINGS
    ${ONEEMB_KERNEL_SOURCES} ${ONEEMB_STORE_SOURCES} ${ONEEMB_TIER_SOURCES}
    ${ONEEMB_FFI_SOURCES} ${ONEEMB_MODULE_SOURCES})
  target_compile_definitions(${name} PRIVATE ONEEMB_MODULE_NAME=${name})
  target_compile_options(${name} PRIVATE ${ARGN})
  target_include_directories(${name} SYSTEM PRIVATE
    "${ONEEMB_FFI_INCLUDE_DIR}")
  target_link_libraries(${name} PRIVATE oneemb_flags oneemb_warnings)
  # XLA's headers and the standard library leave weak symbols behind; two
  # modules in one process must not share them.
  target_link_options(${name} PRIVATE -Wl,--exclude-libs,ALL)
  install(TARGETS ${name} LIBRARY DESTINATION oneemb_jax COMPONENT python)
  if(ONEEMB_INPLACE)
    set_target_properties(${name} PROPERTIES
      LIBRARY_OUTPUT_DIRECTORY "${PROJECT_SOURCE_DIR}/oneemb_jax")
  endif()
endfunction()
