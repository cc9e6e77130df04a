#include "cuda/update_rows.h"

namespace oneemb::gpu {

ONEEMB_DEFINE_UPDATE_ROWS(Ftrl)
ONEEMB_DEFINE_UPDATE_ROWS(FtrlRoot)
ONEEMB_DEFINE_UPDATE_ROWS(FtrlInverseRoot)

}  // namespace oneemb::gpu
