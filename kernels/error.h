/* Error codes, shared by kernels and lib.  0 is success. */
#ifndef LPO_ERROR_H
#define LPO_ERROR_H

enum lpo_error {
	LPO_EINVAL = -1,	/* a caller's or user's value makes no sense */
	LPO_EIO = -2,		/* the system refused to read or write */
	LPO_ENOMEM = -3,
	LPO_EFORMAT = -4,	/* a file is not what it should be */
	LPO_ENODEV = -5,	/* no such device or CPU feature */
	LPO_ECUDA = -6,
	LPO_EDB = -7,
	LPO_ENOTFOUND = -8,
	LPO_ESTOP = -9,		/* stopped by the context's stop flag */
	LPO_EPIPE = -10		/* the reader of our output went away */
};

#endif
