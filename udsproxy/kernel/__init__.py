"""What the kernel tells about sockets and the processes behind them. Nothing here touches the traffic."""
