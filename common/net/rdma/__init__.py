"""The rdma link: frames by SEND and RECV, payload by one-sided READ and WRITE of the server."""
