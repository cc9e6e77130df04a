# Refuses XLA FFI headers that would make a module which old jaxlibs reject.
#
# A jaxlib accepts handlers whose API minor is at most its own, and a rejected
# handler disables every JAX program in the process. So the headers decide the
# oldest jaxlib that users can have.
#
# Included by CMakeLists.txt; alone:
#   cmake -DONEEMB_FFI_INCLUDE_DIR=<folder> -P cmake/ffi_headers.cmake

set(ONEEMB_FFI_NEWEST_MINOR 3)  # jaxlib 0.10

function(oneemb_check_ffi_headers include_dir)
  set(header "${include_dir}/xla/ffi/api/c_api.h")
  if(NOT EXISTS "${header}")
    message(FATAL_ERROR "No XLA FFI headers: ${header} does not exist. "
      "Install jaxlib 0.10 (pip install 'jaxlib==0.10.*') or set "
      "ONEEMB_FFI_INCLUDE_DIR to the include folder of one.")
  endif()
  file(STRINGS "${header}" lines
    REGEX "^#define XLA_FFI_API_(MAJOR|MINOR) +[0-9]+")
  string(REGEX MATCH "API_MAJOR +([0-9]+)" _ "${lines}")
  set(major "${CMAKE_MATCH_1}")
  string(REGEX MATCH "API_MINOR +([0-9]+)" _ "${lines}")
  set(minor "${CMAKE_MATCH_1}")
  if(major STREQUAL "" OR minor STREQUAL "")
    message(FATAL_ERROR "${header} states no XLA FFI API version.")
  endif()
  if(NOT major EQUAL 0 OR minor GREATER ONEEMB_FFI_NEWEST_MINOR)
    message(FATAL_ERROR "${header} is XLA FFI API ${major}.${minor}, newer "
      "than 0.${ONEEMB_FFI_NEWEST_MINOR}: a module built with it would not "
      "load in jaxlib 0.10. Build with the headers of jaxlib 0.10 "
      "(pip install 'jaxlib==0.10.*', or set ONEEMB_FFI_INCLUDE_DIR).")
  endif()
  message(STATUS "XLA FFI API ${major}.${minor}: ${include_dir}")
endfunction()

if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
  oneemb_check_ffi_headers("${ONEEMB_FFI_INCLUDE_DIR}")
endif()
